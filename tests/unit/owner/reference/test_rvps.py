"""RVPS messages of every type, named as upstream's extractors name them, and broken ones."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import cbor2
import pytest

from enclave_cc.errors import PeerError
from enclave_cc.owner.reference import corim, rvps, swid

KEY = uuid.UUID("31fb5abf-023e-4992-aa4e-95f9c1503bfa")


def message(kind: str, payload: bytes) -> bytes:
    return json.dumps({"version": "0.1.0", "type": kind, "payload": base64.b64encode(payload).decode()}).encode()


def make_swid(*resources: str, meta: str = 'edition="GPU-1"', head: str = "") -> bytes:
    return f"""{head}<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
  xmlns:rim="https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
  xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384">
  <Meta {meta} rim:PlatformManufacturerStr="ACME Ltd"/>
  <Payload>{"".join(resources)}</Payload>
</SoftwareIdentity>""".encode()


def make_corim(*measurements: Any, vendor: object = "ACME", model: object = "RoadRunner", tags: tuple[int, ...] = (501,)) -> bytes:
    """A CoRIM as draft-ietf-rats-corim has it: one CoMID with one reference triple."""
    comid = {1: {0: "id"}, 4: {0: [[{0: {1: vendor, 2: model}}, list(measurements)]]}}
    document: Any = {0: "corim", 1: [cbor2.CBORTag(505, b"a CoSWID"), cbor2.CBORTag(506, cbor2.dumps(comid))]}
    for tag in tags:
        document = cbor2.CBORTag(tag, document)
    return cbor2.dumps(document)


DIGEST = [1, b"\xab" * 32]


def test_swid() -> None:
    found = swid.extract(
        make_swid(
            f'<Resource type="Measurement" index="12" h:Hash0="{"ab" * 48}" h:Hash1="{"cd" * 48}"/>',
            f'<Resource type="Measurement" index="13" h:Hash0="{"00" * 48}" h:Hash1="{"ef" * 48}"/>',
            f'<Resource type="Measurement" index="14" h:Hash0="{"00" * 48}"/>',
            '<Resource type="Other" index="15" h:Hash0="ff"/>',
        )
    )
    assert found == {
        "ACME_Ltd.GPU_1.measurement_12": ["ab" * 48, "cd" * 48],
        "ACME_Ltd.GPU_1.measurement_13": ["ef" * 48],
    }


def test_corim() -> None:
    found = corim.extract(
        make_corim(
            {0: KEY, 1: {2: [DIGEST, [7, b"\xcd" * 48]]}},
            {0: 5, 1: {2: [DIGEST], 11: "name", 8: "serial"}},
            {0: "text", 1: {4: cbor2.CBORTag(560, b"raw"), 1: 7}},
            {1: {4: b"not tagged"}},
        )
    )
    assert found == {
        f"ACME/RoadRunner/{KEY}/digests": ["ab" * 32, "cd" * 48],
        "ACME/RoadRunner/claim5/name/serial/digests": ["ab" * 32],
        "ACME/RoadRunner/text/raw_bytes": b"raw".hex(),
    }


def test_two_measurements_of_one_name_both_count() -> None:
    found = corim.extract(make_corim({0: KEY, 1: {2: [DIGEST]}}, {0: KEY, 1: {2: [[1, b"\xcd" * 32]]}}))
    assert list(found.values()) == [["ab" * 32, "cd" * 32]]


@pytest.mark.parametrize("tags", [(), (501,), (501, 500), (501, 502, 500)])
def test_corim_in_the_tags_that_tools_write(tags: tuple[int, ...]) -> None:
    assert len(corim.extract(make_corim({0: KEY, 1: {2: [DIGEST]}}, tags=tags))) == 1


def test_signed_corim_is_read_like_upstream_does() -> None:
    signed = cbor2.dumps(cbor2.CBORTag(18, [b"", {}, make_corim({0: KEY, 1: {2: [DIGEST]}}), b"sig"]))
    assert len(corim.extract(signed)) == 1


def test_messages_become_reference_values() -> None:
    values = rvps.parse_message(message("corim", make_corim({0: KEY, 1: {2: [DIGEST]}})))
    assert [(value.name, value.value, value.member) for value in values] == [(f"ACME/RoadRunner/{KEY}/digests", "ab" * 32, True)]
    assert values[0].source == {"rvps": "corim"}
    values = rvps.parse_message(message("sample", b'{"a":[1,2],"b":3,"c":[]}'))
    assert [(value.name, value.value, value.member) for value in values] == [
        ("a", 1, True),
        ("a", 2, True),
        ("b", 3, False),
        ("c", [], False),
    ]
    assert rvps.parse_message(json.dumps({"type": "sample", "payload": base64.b64encode(b"{}").decode()}).encode()) == []


@pytest.mark.parametrize(
    "body",
    [
        message("in-toto", b"{}"),
        message("", b"{}"),
        b'{"version":"0.1.0","type":["sample"],"payload":"e30="}',
        message("swid", b""),
        message("swid", b"<a/>"),
        message("swid", b"<a><b></a>"),
        message("swid", b"\xff\xfe<\0a\0/\0>\0"),
        message("swid", make_swid(head='<!DOCTYPE a [<!ENTITY x "y">]>')),
        message("swid", make_swid(head='<!DOCTYPE a SYSTEM "file:///etc/passwd">')),
        message("swid", make_swid(meta="")),
        message("swid", make_swid('<Resource type="Measurement"/>')),
        message("swid", make_swid("<Resource/>" * 20_001)),
        message(
            "swid",
            make_swid(meta='edition="with&#x7f;control"').replace(
                b"<Payload>", b'<Payload><Resource type="Measurement" index=" " h:Hash0="1"/>'
            ),
        ),
        message("corim", b""),
        message("corim", cbor2.dumps(5)),
        message("corim", cbor2.dumps({1: 5})),
        message("corim", make_corim() + b"\0"),
        message("corim", make_corim(tags=(501, 999))),
        message("corim", make_corim(tags=(501, 500, 500, 500, 500))),
        message("corim", make_corim({1: {2: [5]}})),
        message("corim", make_corim({1: {2: [[1, "text"]]}})),
        message("corim", make_corim({1: {2: [DIGEST]}}, vendor="", model="with space")),
        message("corim", cbor2.dumps(cbor2.CBORTag(18, [b"", {}, None, b""]))),
        message("corim", bytes.fromhex("d81c81d81d00")),  # a list that holds itself
        message("corim", bytes.fromhex("c4821a7fffffff01")),  # 1e2147483647
        message("corim", bytes.fromhex("a2010101f6")),  # a key twice
        message("corim", b"\x81" * 5000),
        message("corim", bytes.fromhex("9b7fffffffffffffff")),
        message("corim", bytes(1024 * 1024 + 1)),
    ],
)
def test_broken_messages(body: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        rvps.parse_message(body)
    assert refused.value.code == "malformed"
