"""Simple signing payloads, sigstore bundles and in-toto statements."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import signature as formats
from enclave_cc.wire.oci.digest import Digest

DIGEST = Digest.parse("sha256:" + "ab" * 32)


def payload(**critical: Any) -> bytes:
    value = {
        "identity": {"docker-reference": "h:1/a"},
        "image": {"docker-manifest-digest": str(DIGEST)},
        "type": "cosign container image signature",
        **critical,
    }
    return json.dumps({"critical": value, "optional": {"creator": "x", "timestamp": 5}}).encode()


def test_reads_cosigns_payload() -> None:
    assert formats.SimpleSigning.parse(payload()) == formats.SimpleSigning("h:1/a", DIGEST)


def test_writes_what_it_reads() -> None:
    made = formats.SimpleSigning("h:1/a", DIGEST)
    assert formats.SimpleSigning.parse(made.encode()) == made
    assert formats.signature_tag(DIGEST) == "sha256-" + "ab" * 32 + ".sig"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        payload(type="atomic container signature"),
        payload(extra=1),
        payload(image={"docker-manifest-digest": "sha256:1"}),
        payload(identity={}),
        payload() + b" " * formats.PAYLOAD_LIMIT,
    ],
)
def test_refuses_other_payloads(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        formats.SimpleSigning.parse(data)
    assert caught.value.code == "malformed"


def statement(**more: Any) -> dict[str, Any]:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": DIGEST.hex}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
        **more,
    }


def bundle(inner: bytes, *signatures: bytes, **more: Any) -> bytes:
    envelope = {
        "payload": base64.b64encode(inner).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": base64.b64encode(s).decode()} for s in signatures],
        **more,
    }
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    return json.dumps({"mediaType": kind, "verificationMaterial": {"publicKey": {"hint": ""}}, "dsseEnvelope": envelope}).encode()


def test_a_bundles_signed_bytes_are_dsses() -> None:
    """DSSE protocol.md: PAE(type, body) = "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body."""
    found = formats.Bundle.parse(bundle(b"hello world", b"s"))
    assert found.signed_bytes() == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"
    assert found.signatures == (b"s",)


def test_a_statement_says_which_digests() -> None:
    assert formats.Statement.parse(json.dumps(statement()).encode()).digests == (DIGEST,)


@pytest.mark.parametrize(
    "change", [{"_type": "x"}, {"predicateType": "https://slsa.dev/provenance/v1"}, {"subject": [{"digest": {}}]}, {"subject": 5}]
)
def test_an_attestation_is_not_a_signature(change: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        formats.Statement.parse(json.dumps(statement(**change)).encode())


@pytest.mark.parametrize(
    "data", [b"{}", bundle(b"x"), bundle(b"x", b"s", payloadType="text/plain"), bundle(b"x", *[b"s"] * 17), b"[]"]
)
def test_refuses_other_bundles(data: bytes) -> None:
    with pytest.raises(PeerError):
        formats.Bundle.parse(data)
