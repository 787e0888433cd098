"""Signed payloads, bundles, statements and signature policies."""

from __future__ import annotations

import contextlib

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import signature, signature_policy
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.reference import Reference

_IMAGE = Reference.parse("host.example:5000/a/b:t")
SEEDS: list[bytes] = [
    signature.SimpleSigning("h:1/a", Digest.of(b"")).encode(),
    b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"payload":"AAAA",'
    b'"payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}}',
    b'{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"' + b"ab" * 32 + b'"}}],'
    b'"predicateType":"https://sigstore.dev/cosign/sign/v1"}',
    b'{"default":[{"type":"reject"}],"transports":{"docker":{"host.example:5000/a":[{"type":"sigstoreSigned","keyData":"AAAA",'
    b'"signedIdentity":{"type":"remapIdentity","prefix":"host.example:5000","signedPrefix":"h:2"}}]}}}',
]


def target(data: bytes) -> None:
    for parse in (signature.SimpleSigning.parse, signature.Bundle.parse, signature.Statement.parse):
        with contextlib.suppress(PeerError):
            parse(data)
    try:
        policy = signature_policy.SignaturePolicy.parse(data)
    except PeerError:
        return
    for requirement in policy.requirements_for(_IMAGE):
        if isinstance(requirement, signature_policy.SigstoreSigned):
            requirement.identity.accepts(_IMAGE, data.decode("utf-8", "replace"))
