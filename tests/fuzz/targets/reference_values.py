"""Reference values from outside: DSSE envelopes, in-toto statements behind a good signature, SWID tags, CoRIMs."""

from __future__ import annotations

import json

import cbor2

from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.reference import corim, envelope, statement, swid
from enclave_cc.owner.reference.statement import Build, Dependency

_KEY = SigningKey.generate()
_KEYS = {"ci": _KEY.public}
_MEASURED = {"role": "agent", "libos": "simulated", "mr_enclave": "aa" * 32, "mr_signer": "bb" * 32, "isv_prod_id": 1, "isv_svn": 3}
_STATEMENT = statement.make_statement(
    {**_MEASURED, "debug": False, "inputs": {"enclave_cc": "0"}},
    "cc" * 32,
    Build(
        builder="x",
        started=0,
        finished=0,
        dependencies=[Dependency("git", {"gitCommit": "dd"}), Dependency("lock", {"sha256": "ee"})],
    ),
)
_COMID = {4: {0: [[{0: {1: "ACME", 2: "X"}}, [{0: 5, 1: {2: [[1, b"ab"]], 4: cbor2.CBORTag(560, b"r"), 11: "n", 8: "s"}}]]]}}

SEEDS = [
    statement.sign(_STATEMENT, _KEY, expires=1_900_000_000),
    json.dumps(_STATEMENT).encode(),
    cbor2.dumps(cbor2.CBORTag(501, {0: "id", 1: [cbor2.CBORTag(506, cbor2.dumps(_COMID))]})),
    cbor2.dumps(cbor2.CBORTag(501, {0: "id", 1: [cbor2.CBORTag(506, _COMID)]})),
    cbor2.dumps(cbor2.CBORTag(18, [b"", {}, cbor2.dumps(cbor2.CBORTag(501, {0: "id", 1: []})), b""])),
    b'<S xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" xmlns:r="https://trustedcomputinggroup.org/resource/'
    b'tcg-reference-integrity-manifest-rim-information-model/" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384"><Meta edition="e" '
    b'r:PlatformManufacturerStr="m"/><Payload><Resource type="Measurement" index="1" h:Hash0="ab" h:Hash1="00"/></Payload></S>',
]


def target(data: bytes) -> None:
    for parse in (
        lambda raw: statement.verify(raw, _KEYS),
        lambda raw: statement.verify(envelope.sign(raw, statement.PAYLOAD_TYPE, _KEY), _KEYS),
        corim.extract,
        swid.extract,
    ):
        try:
            parse(data)
        except PeerError:
            continue
