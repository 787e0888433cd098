"""Which claims there are: the shape of `input` for attestation and release policies, for `policy lint`.

Of our own kinds of evidence every member is known (`verifier.claims`, `kbs.evidence`); of Trustee's others the names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from enclave_cc.owner.policy import syntax
from enclave_cc.record import record
from enclave_cc.wire.rcar import token
from enclave_cc.wire.sgx import collateral


@record
class Leaf:
    """One claim. `kind`: "hex" (lower case, of `size` bytes), "text", "number", "boolean", "list" or "any" (with
    members that nobody lists). `values`: all there are, where that is known. `example`: of a good platform."""

    kind: str
    size: int = 0
    values: tuple[Any, ...] = ()
    example: Any = None


def _hex(size: int, example: str | None = None) -> Leaf:
    return Leaf("hex", size, example="00" * size if example is None else example)


ANY = Leaf("any")
EACH = "*"  # a member of any name

# What a policy may meet: evidence of a revoked level never comes to it.
TCB_STATUSES = tuple(status for status in collateral.TCB_STATUSES if status != "Revoked")

SGX: Mapping[str, Any] = {
    "header": {
        "version": _hex(2, "0300"),
        "att_key_type": _hex(2, "0200"),
        "att_key_data_0": _hex(4),
        "qe_svn": _hex(2),
        "pce_svn": _hex(2),
        "vendor_id": _hex(16, "939a7233f79c4ca9940a0db3957f0607"),
        "user_data": _hex(20),
    },
    "body": {
        "cpu_svn": _hex(16),
        "misc_select": _hex(4),
        "reserved1": _hex(12),
        "isv_ext_prod_id": _hex(16),
        "attributes.flags": _hex(8, "0500000000000000"),
        "attributes.xfrm": _hex(8, "0300000000000000"),
        "mr_enclave": _hex(32),
        "reserved2": _hex(32),
        "mr_signer": _hex(32),
        "reserved3": _hex(32),
        "config_id": _hex(64),
        "isv_prod_id": _hex(2, "0100"),
        "isv_svn": _hex(2, "0100"),
        "config_svn": _hex(2),
        "reserved4": _hex(42),
        "isv_family_id": _hex(16),
        "report_data": _hex(64),
    },
    "tcb_status": Leaf("text", values=TCB_STATUSES, example="UpToDate"),
    "tcb_date": Leaf("text", example="2025-01-01T00:00:00Z"),
    "advisory_ids": Leaf("list", example=[]),
    "tcb_eval_num": Leaf("number", example=17),
    "collateral_expiration_status": Leaf("text", values=("0", "1"), example="0"),
    "earliest_issue_date": Leaf("text", example="2025-01-01T00:00:00Z"),
    "latest_issue_date": Leaf("text", example="2025-01-01T00:00:00Z"),
    "earliest_expiration_date": Leaf("text", example="2035-01-01T00:00:00Z"),
    "pck_crl_num": Leaf("number", example=1),
    "root_ca_crl_num": Leaf("number", example=1),
    "platform_provider_id": _hex(16),
    "platform_instance_id": _hex(16),
    "sgx_type": Leaf("text", values=("Standard", "Scalable", "Scalable with Integrity"), example="Scalable"),
    "root_key_id": _hex(48),
    "fmspc": _hex(6),
    "root": Leaf("text", example="intel"),
    "simulated": Leaf("boolean", example=False),
    "is_dynamic_platform": Leaf("boolean", example=False),
    "is_cached_keys": Leaf("boolean", example=True),
    "is_smt_enabled": Leaf("boolean", example=True),
}

SAMPLE: Mapping[str, Any] = {
    "svn": Leaf("text", example="1"),
    "launch_digest": Leaf("text", example="abcde"),
    "platform_version": {"major": Leaf("number", example=1), "minor": Leaf("number", example=4)},
    "debug": Leaf("boolean", example=False),
}

# Evidence of other kinds, which upstream's policies may name; this KBS has no verifier for it.
_FOREIGN_TEES = ("snp", "tdx", "az-snp-vtpm", "az-tdx-vtpm", "az_snp_vtpm", "az_tdx_vtpm", "se", "cca", "csv", "tpm", "nvidia")

ATTESTATION: Mapping[str, Any] = {
    "sgx": SGX,
    "sample": SAMPLE,
    "report_data": Leaf("text"),
    "init_data": Leaf("text"),
    "init_data_claims": ANY,
    "runtime_data_claims": {"additional-evidence": Leaf("text"), "nonce": Leaf("text"), "tee-pubkey": ANY},
    **dict.fromkeys(_FOREIGN_TEES, ANY),
}

_TIERS = ("none", "affirming", "warning", "contraindicated")

RELEASE: Mapping[str, Any] = {
    "eat_profile": Leaf("text", values=(token.PROFILE,)),
    "iat": Leaf("number"),
    "exp": Leaf("number"),
    "iss": Leaf("text"),
    token.VERIFIER_ID: {"developer": Leaf("text"), "build": Leaf("text")},
    "submods": {
        EACH: {
            token.STATUS: Leaf("text", values=_TIERS),
            token.VECTOR: {name: Leaf("number") for name in token.CLAIMS},
            token.POLICY_ID: Leaf("text"),
            token.EVIDENCE: ATTESTATION,
            EACH: ANY,  # the attestation policy's extensions
        }
    },
}

# `data` beside a release policy.
REQUEST: Mapping[str, Any] = {"plugin": Leaf("text"), "resource-path": {EACH: Leaf("text")}, "query": {EACH: Leaf("text")}}


def find(tree: Mapping[str, Any], parts: syntax.Path) -> Any:
    """What is at a path: a `Leaf`, or the members below it. Raises `KeyError` with the number of parts that are known."""
    here: Any = tree
    for number, part in enumerate(parts):
        if isinstance(here, Leaf):
            if here.kind in ("any", "list") or part is None:
                return ANY
            raise KeyError(number)
        if part is None:
            if EACH not in here:
                return ANY  # a computed member of a fixed object
            here = here[EACH]
        elif part in here:
            here = here[part]
        elif EACH in here and not (isinstance(here[EACH], Leaf) and here[EACH].kind == "any" and _resembles(part, here)):
            here = here[EACH]
        else:
            raise KeyError(number)
    return here


def suggest(tree: Mapping[str, Any], parts: syntax.Path) -> syntax.Path | None:
    """The known path that an unknown one most likely means, None when nothing is near."""
    known = [path for path, _ in _walk(tree, ())]
    plain = tuple(part or EACH for part in parts)
    joined = ".".join(plain)
    same = [path for path in known if ".".join(path) == joined]  # "attributes.flags" written as two members
    last = [path for path in known if path[-1] == plain[-1] or path[-1].endswith("." + plain[-1])]
    if not same and not last:
        ends = difflib.get_close_matches(plain[-1], [path[-1] for path in known], n=4, cutoff=0.6)
        last = [path for path in known if path[-1] in ends]
    candidates = same or last
    if not candidates:
        return None
    best = max(candidates, key=lambda path: (difflib.SequenceMatcher(None, joined, ".".join(path)).ratio(), -len(path)))
    return tuple(None if part == EACH else part for part in best)


def example(tree: Mapping[str, Any] = SGX) -> dict[str, Any]:
    """The claims of a good platform and an enclave of zeros, for tests of policies."""
    return {
        name: (member.example if isinstance(member, Leaf) else example(member)) for name, member in tree.items() if name != EACH
    }


def _resembles(part: str, members: Mapping[str, Any]) -> bool:
    return bool(difflib.get_close_matches(part, [name for name in members if name != EACH], n=1, cutoff=0.75))


def _walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, member in tree.items():
        yield (*path, name), member
        if not isinstance(member, Leaf):
            yield from _walk(member, (*path, name))
