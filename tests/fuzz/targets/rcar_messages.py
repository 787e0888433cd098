"""RCAR's Request, Challenge, Error JSON and token answer; resource URIs; init-data; RVPS messages; bundle references."""

from __future__ import annotations

from collections.abc import Callable

from enclave_cc.errors import PeerError
from enclave_cc.owner.reference import rvps, values
from enclave_cc.wire.rcar import messages
from enclave_cc.wire.rcar.initdata import InitData
from enclave_cc.wire.rcar.uri import ResourcePath, ResourceUri

SEEDS = [
    messages.Request("sgx", extra_params={"supported-hash-algorithms": ["sha384"]}).encode(),
    messages.Challenge("bm9uY2U=").encode(),
    messages.Problem("PolicyDeny", "denied, id 1", "kbs-denied", "1").encode(),
    messages.encode_token_answer("a.b.c"),
    b"kbs+resource://host:1/default/key/one?a=b",
    b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"cdh.toml" = "x = 2026-01-01"\n',
    b'{"version":"0.1.0","type":"sample","payload":"eyJhIjpbMV19"}',
    b'{"role":"agent","mr_enclave":"' + b"a" * 64 + b'","mr_signer":"' + b"b" * 64 + b'","isv_prod_id":1,"isv_svn":0}',
]

_PARSERS: tuple[Callable[[bytes], object], ...] = (
    messages.Request.parse,
    messages.Challenge.parse,
    messages.Problem.parse,
    messages.parse_token_answer,
    rvps.parse_message,
    values.parse_bundle_reference,
    lambda data: InitData.parse(data.decode("utf-8", "replace")).claims(),
    lambda data: ResourceUri.parse(data.decode("latin-1")),
    lambda data: ResourcePath.parse(data.decode("latin-1")),
)


def target(data: bytes) -> None:
    for parse in _PARSERS:
        try:
            parse(data)
        except PeerError:
            continue
