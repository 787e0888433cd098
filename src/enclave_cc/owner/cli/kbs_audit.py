"""The audit log: verify it, export it whole or for one owner's resources, keep checkpoints, prove single entries.

On the KBS's own directory this reads the database, whether the KBS serves or not; elsewhere it asks the KBS. Keep
audit.pub, and now and then a checkpoint, where the KBS's operator cannot change them: what is verified with both can
then neither be changed nor cut short nor replaced by another history.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import PeerError, UsageError, explain_os_error
from enclave_cc.owner.audit.export import DatabaseSource, LogSource, compose_export
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.audit.verification import Verified, verify_export
from enclave_cc.owner.cli.resource import read_input
from enclave_cc.owner.kbs import audit_keys
from enclave_cc.owner.kbs.audit_client import RemoteLog
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.config import KbsConfig
from enclave_cc.owner.kbs.directory import DIRECTORY_HELP, KbsDirectory
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.settings import open_database
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import Entry
from enclave_cc.wire.audit.export import MAX_LINE
from enclave_cc.wire.tlog import proof_text
from enclave_cc.wire.tlog.checkpoint import Checkpoint
from enclave_cc.wire.tlog.note import Note, VerifierKey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="verify the log, or an export or proof in FILE, which needs no KBS")
    verify.add_argument("file", metavar="FILE", nargs="?", help="of `export` or `prove`; - for standard input")
    verify.add_argument("--key", metavar="FILE", help="the log's audit.pub, as you have kept it; default: the directory's")
    verify.add_argument("--json", action="store_true")
    export = actions.add_parser("export", help="print the log as JSON lines, in a form that `verify` takes")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every entry")
    which.add_argument("--resource-prefix", metavar="PREFIX", help="what concerns REPOSITORY[/TYPE[/TAG]], with proofs")
    checkpoint = actions.add_parser("checkpoint", help="print a signed checkpoint of the log as it is now")
    prove = actions.add_parser("prove", help="print one entry with its proof (C2SP tlog-proof)")
    prove.add_argument("index", metavar="INDEX", type=int)
    new_key = actions.add_parser("new-key", help="make the key that signs checkpoints, or the next one; then restart the KBS")
    for action in (verify, export):
        action.add_argument("--checkpoint", metavar="FILE", action="append", default=[], help="one that you have kept; repeatable")
    for action in (export, checkpoint, prove):
        action.add_argument("--out", metavar="FILE", help="instead of standard output")
    for action in (verify, export, checkpoint, prove, new_key):
        action.add_argument("--kbs", "--dir", metavar="DIR", help=f"KBS directory; {DIRECTORY_HELP}")


def run(arguments: argparse.Namespace) -> int:
    directory = KbsDirectory.locate(arguments.kbs)
    match arguments.action:
        case "verify":
            _verify(directory, arguments)
        case "export":
            kept = [read_input(name) for name in arguments.checkpoint]
            with _open_log(directory) as log:
                prefix = None if arguments.all else arguments.resource_prefix
                _write(arguments.out, compose_export(log.source, log.checkpoint, prefix=prefix, kept=kept))
        case "checkpoint":
            with _open_log(directory) as log:
                _write(arguments.out, [log.checkpoint])
        case "prove":
            with _open_log(directory) as log:
                _write(arguments.out, [_prove(log, arguments.index)])
        case _:
            directory.read_certificate()  # there is a KBS directory
            key = audit_keys.create(directory.path)
            public = directory.path / audit_keys.PUBLIC
            print(f"checkpoints are signed by {key} once the KBS was restarted; give auditors the new {public}")
    return 0


@record
class _OpenLog:
    """A source and a signed checkpoint of what it has now. `broken`: why the KBS's own log does not open."""

    source: LogSource
    checkpoint: bytes
    broken: PeerError | None = None


@contextmanager
def _open_log(directory: KbsDirectory, *, even_broken: bool = False) -> Iterator[_OpenLog]:
    """The log of the directory's database, or, from an owner's part of a directory, of the KBS that it names."""
    if not directory.configuration.exists():
        remote = RemoteLog(AdminClient.from_directory(directory.path))
        yield _OpenLog(remote, remote.checkpoint())
        return
    keys, config = audit_keys.read(directory.path), KbsConfig.load(directory)
    database = open_database(config.database, directory.path)
    try:
        migration.check(database)
        source, broken = DatabaseSource(database), None
        try:
            checkpoint = AuditLog(database, keys.signer, keys=keys.verifiers, settings=config.audit).checkpoint()
        except PeerError as error:
            newest = source.read_newest_checkpoint()
            if not even_broken or newest is None:
                raise
            checkpoint, broken = newest, error
        yield _OpenLog(source, checkpoint, broken)
    finally:
        database.close()


def _verify(directory: KbsDirectory, arguments: argparse.Namespace) -> None:
    key_file = arguments.key or str(directory.path / audit_keys.PUBLIC)
    keys = audit_keys.parse_public(read_input(key_file), key_file)
    kept = [read_input(name) for name in arguments.checkpoint]
    if arguments.file is None:
        found = _verify_log(directory, keys, kept)
    else:
        with _open_file(arguments.file) as lines:
            first = next(lines, b"")
            if first.rstrip(b"\n") == proof_text.FIRST_LINE.encode():
                _show_entry(_verify_proof(b"".join([first, *lines]), keys, kept), as_json=arguments.json)
                return
            found = verify_export(itertools.chain([first] if first else [], lines), keys, kept)
    if arguments.json:
        console.print_value(found.to_json())
        return
    what = "the whole log" if found.prefix is None else f"what concerns {found.prefix or 'any resource'}"
    print(f"verified {what} of {found.checkpoint.origin}: {found.entries} entries, under the checkpoint of {found.checkpoint.size}")
    if found.older:
        print(f"it continues the checkpoints of {', '.join(map(str, found.older[-20:]))} entries")


def _verify_log(directory: KbsDirectory, keys: Sequence[VerifierKey], kept: Sequence[bytes]) -> Verified:
    with _open_log(directory, even_broken=True) as log:
        found = verify_export(compose_export(log.source, log.checkpoint), keys, kept)
        if log.broken is not None:  # what was signed is sound; what lies behind it is not
            raise log.broken
    return found


def _prove(log: _OpenLog, index: int) -> bytes:
    size = Checkpoint.parse(Note.parse(log.checkpoint).text).size
    if not 0 <= index < size:
        raise UsageError(
            "not-found", f"there is no entry {index} in a log of {size}", "See `explain ID` for the index of a decision."
        )
    line = log.source.read_entry(index, size)
    return proof_text.EntryProof(index, line.proof or (), log.checkpoint, line.entry.encode()).encode()


def _verify_proof(data: bytes, keys: Sequence[VerifierKey], kept: Sequence[bytes]) -> Entry:
    """The entry in a proof. A proof says nothing of other trees than its own, so that kept checkpoints cannot be compared."""
    if kept:
        raise UsageError(
            "usage", "a proof of one entry does not show that the log continues a checkpoint", "Verify an export for that."
        )
    proof = proof_text.EntryProof.parse(data)
    if proof.extra is None:
        raise PeerError("malformed", "the proof does not have its entry")
    proof_text.verify_entry(proof, proof.extra, keys)
    entry = Entry.parse(proof.extra)
    if entry.index != proof.index:
        raise PeerError("audit-broken", f"the entry says that it is number {entry.index}, and the proof is for {proof.index}")
    return entry


def _show_entry(entry: Entry, *, as_json: bool) -> None:
    if not as_json:
        print(f"verified entry {entry.index}:")
    console.print_value(entry.to_json())


@contextmanager
def _open_file(name: str) -> Iterator[Iterator[bytes]]:
    """The lines of a file, none longer than an export's can be."""
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            yield iter(lambda: file.readline(MAX_LINE + 2), b"")
    except FileNotFoundError as error:
        raise UsageError("not-found", f"there is no file {name}", "Check the path.") from error


def _write(name: str | None, lines: Iterable[bytes]) -> None:
    """To standard output, or to a file that is there whole or not at all."""
    if name is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise explain_os_error(error, name) from error
    finally:
        new.unlink(missing_ok=True)
