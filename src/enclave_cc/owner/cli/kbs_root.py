"""Name the platform roots that the KBS trusts, with the collateral that quotes below them are judged by.

Works on the KBS's own directory, while it serves or not: no token can widen what a KBS trusts. Intel's root is built
in and needs collateral only. Adding a root again replaces its collateral.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from enclave_cc import console
from enclave_cc.crypto.x509 import Certificate
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.audit import kinds
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.cli.resource import read_input
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.kbs.audit_trail import AuditTrail
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP, KbsDirectory
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.settings import open_database
from enclave_cc.owner.verifier.collateral import PCK_CAS, verify_collateral
from enclave_cc.owner.verifier.roots import INTEL, TrustedRoot, intel_root, is_intel
from enclave_cc.wire.sgx.certification import parse_pem_certificates
from enclave_cc.wire.sgx.collateral import Collateral, TcbInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help=f"trust a root, or replace its collateral; {INTEL} is Intel's")
    add.add_argument("name", metavar="NAME")
    add.add_argument("--certificate", metavar="PEM", help=f"the root's certificate; not needed for {INTEL}")
    add.add_argument("--collateral", metavar="JSON", action="append", default=[], help="QuoteCollateralV3; once per FMSPC and CA")
    add.add_argument("--simulated", action="store_true", help="platforms below this root are no hardware and protect nothing")
    listing = actions.add_parser("ls", help="list roots and their collateral")
    listing.add_argument("--json", action="store_true")
    remove = actions.add_parser("rm", help="stop trusting a root")
    remove.add_argument("name", metavar="NAME")
    for action in (add, listing, remove):
        action.add_argument("--kbs", "--dir", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    directory = KbsDirectory.locate(arguments.kbs)
    config = KbsConfig.load(directory)
    with _open_roots(directory, config) as (roots, trail):
        match arguments.action:
            case "add":
                _add(roots, trail, arguments, fetched=config.collateral.fetches)
            case "ls":
                _list(roots, as_json=arguments.json)
            case _:
                roots.remove(arguments.name)
                trail.change(kinds.ROOT_REMOVED, None, {"name": arguments.name})
    return 0


@contextmanager
def _open_roots(directory: KbsDirectory, config: KbsConfig) -> Iterator[tuple[RootStore, AuditTrail]]:
    keys = audit_keys.read(directory.path)
    database = open_database(config.database, directory.path)
    try:
        migration.check(database)
        log = AuditLog(database, keys.signer, keys=keys.verifiers, settings=config.audit)
        yield RootStore(database), AuditTrail(log, Log(io.StringIO()))
    finally:
        database.close()


def _add(roots: RootStore, trail: AuditTrail, arguments: argparse.Namespace, *, fetched: bool) -> None:
    root = _read_root(arguments)
    documents = [(name, read_input(name)) for name in arguments.collateral]
    if not documents and not fetched:
        fix = "Give --collateral FILE, or name a directory or a service in [collateral] of kbs.toml."
        raise UsageError("usage", "a root without collateral verifies nothing", fix)
    judged = [_judge_collateral(name, document, root) for name, document in documents]  # all, before anything is stored
    roots.add(root)
    kind = "SIMULATED, protects nothing" if root.simulated else "hardware"
    digest = hashlib.sha256(root.certificate).hexdigest()
    trail.change(kinds.ROOT_ADDED, None, {"name": root.name, "certificate": digest, "simulated": root.simulated})
    for (_, document), (fmspc, ca) in zip(documents, judged, strict=True):
        roots.set_collateral(root.name, fmspc, ca, document.decode())
        members = {"name": root.name, "fmspc": fmspc, "ca": ca, "document": hashlib.sha256(document).hexdigest()}
        trail.change(kinds.COLLATERAL_SET, None, members)
        print(f"trusting {root.name} ({kind}) with collateral for FMSPC {fmspc}, {ca} CA")
    if not documents:
        print(f"trusting {root.name} ({kind}) with the collateral that [collateral] of kbs.toml finds")


def _read_root(arguments: argparse.Namespace) -> TrustedRoot:
    """The root that is meant. Only Intel's stands for hardware: any other must be called simulated by its owner."""
    if arguments.certificate is None:
        if arguments.name != INTEL:
            raise UsageError("usage", f"the root {arguments.name} needs --certificate")
        return intel_root()
    pem = read_input(arguments.certificate)
    if is_intel(pem):
        if arguments.simulated:
            raise UsageError("usage", "this is Intel's root, which is not simulated", "Leave --simulated out.")
        return TrustedRoot.from_pem(arguments.name, pem, simulated=False)
    root = TrustedRoot.from_pem(arguments.name, pem, simulated=arguments.simulated)
    if not arguments.simulated:
        subject = Certificate.parse(root.certificate).common_name
        raise UsageError(
            "untrusted-root",
            f"{subject!r} is not Intel's root: what stands below it is a simulated platform, which protects nothing from its host",
            "If that is meant, for development, say so with --simulated.",
        )
    return root


def _judge_collateral(name: str, document: bytes, root: TrustedRoot) -> tuple[str, str]:
    """(FMSPC in hex, "platform" or "processor") of collateral that is of this root, signed and valid now."""
    try:
        collateral = Collateral.parse(document)
        tcb_info = TcbInfo.parse(collateral.tcb_info)
        issuer = Certificate.parse(parse_pem_certificates(collateral.pck_crl_issuer_chain.strip().encode() + b"\n")[0])
        certificate = Certificate.parse(root.certificate)
        at = int(time.time())
        verify_collateral(collateral, root=certificate, pck_ca=issuer, fmspc=tcb_info.fmspc, pce_id=tcb_info.pce_id, at=at)
        return tcb_info.fmspc.hex(), PCK_CAS[issuer.common_name]
    except PeerError as error:
        raise UsageError(error.code, f"{name}: {error.what}", error.fix) from error
    except (KeyError, IndexError) as error:
        raise UsageError("bad-config", f"{name}: the PCK CRL is not by a PCK platform or processor CA") from error


def _list(roots: RootStore, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for root in roots.list_roots():
        stored = roots.list_collateral(root.name)
        row = {"name": root.name, "simulated": root.simulated}
        rows += [{**row, "fmspc": None, "ca": None, "next_update": None}] if not stored else []
        for collateral in stored:
            until = TcbInfo.parse(Collateral.parse(collateral.document).tcb_info).next_update
            shown = until if as_json else datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            rows.append({**row, "fmspc": collateral.fmspc, "ca": collateral.ca, "next_update": shown})
    console.print_rows(rows, ("name", "simulated", "fmspc", "ca", "next_update"), as_json=as_json)
