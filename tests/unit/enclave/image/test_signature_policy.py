"""Signatures against policies: each check of `check_signatures`, with each kind of key and both forms of signature."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.enclave.image.signature_policy import Approval, check_signatures
from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import signature as formats
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.oci.signature_policy import SignaturePolicy

IMAGE = Reference.parse("h:1/a:t")
DIGEST, INDEX, OTHER = Digest.of(b"manifest"), Digest.of(b"index"), Digest.of(b"other")
KEY = SigningKey(ec.generate_private_key(ec.SECP256R1()))
STRANGER = SigningKey(ec.generate_private_key(ec.SECP256R1()))


def requirement(*keys: SigningKey, identity: str = "matchRepository") -> dict[str, object]:
    data = [base64.b64encode(key.public.to_pem()).decode() for key in keys]
    return {"type": "sigstoreSigned", "keyDatas": data, "signedIdentity": {"type": identity}}


def policy(*requirements: object) -> SignaturePolicy:
    return SignaturePolicy.parse(json.dumps({"default": list(requirements)}).encode())


def signed(key: SigningKey, digest: Digest = DIGEST, reference: str = "h:1/a", *, hint: str = "") -> formats.Signature:
    payload = formats.SimpleSigning(reference, digest).encode()
    return formats.Signature(payload, key.sign(payload), payload, key_id=hint)


def bundled(key: SigningKey, digest: Digest = DIGEST) -> formats.Signature:
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.hex}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
    }
    content = json.dumps(statement).encode()
    message = formats.Bundle("application/vnd.in-toto+json", content, ()).signed_bytes()
    return formats.Signature(message, key.sign(message), content, is_bundle=True)


def check(made: SignaturePolicy, *signatures: formats.Signature, fetch: Callable[[str], bytes] | None = None) -> Approval:
    def nothing(uri: str) -> bytes:
        raise AssertionError(uri)

    return check_signatures(made, IMAGE, (INDEX, DIGEST), signatures, fetch or nothing)


def refused(code: str, made: SignaturePolicy, *signatures: formats.Signature) -> str:
    with pytest.raises(PeerError) as caught:
        check(made, *signatures)
    assert caught.value.code == code
    return caught.value.what


KEYS = [
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP384R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa.generate_private_key(65537, 2048),
]


@pytest.mark.parametrize("private", KEYS, ids=["p256", "p384", "ed25519", "rsa"])
def test_each_kind_of_key(private: ec.EllipticCurvePrivateKey) -> None:
    key = SigningKey(private)
    approval = check(policy(requirement(key)), signed(key))
    assert approval == Approval(IMAGE, (INDEX, DIGEST), (key.public.key_id,))
    refused("signature-untrusted", policy(requirement(KEY)), signed(key))


def test_the_index_or_the_manifest_may_be_signed() -> None:
    for digest in (INDEX, DIGEST):
        check(policy(requirement(KEY)), signed(KEY, digest))
    assert "another image" in refused("signature-wrong", policy(requirement(KEY)), signed(KEY, OTHER))


def test_no_signature_is_missing_and_a_strangers_is_untrusted() -> None:
    refused("signature-missing", policy(requirement(KEY)))
    refused("signature-untrusted", policy(requirement(KEY)), signed(STRANGER))
    refused("signature-untrusted", policy({"type": "reject"}), signed(KEY))
    refused("policy-invalid", policy({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}), signed(KEY))


def test_the_signed_repository_must_fit() -> None:
    assert "'h:1/b'" in refused("signature-wrong", policy(requirement(KEY)), signed(KEY, reference="h:1/b"))
    refused("signature-wrong", policy(requirement(KEY, identity="matchExact")), signed(KEY))
    check(policy(requirement(KEY, identity="matchExact")), signed(KEY, reference="h:1/a:t"))


def test_one_good_signature_among_bad_ones_is_enough() -> None:
    check(policy(requirement(KEY)), signed(STRANGER), signed(KEY, OTHER), signed(KEY))


def test_the_worse_fault_is_told() -> None:
    refused("signature-wrong", policy(requirement(KEY)), signed(STRANGER), signed(KEY, OTHER))
    refused("signature-wrong", policy(requirement(KEY)), signed(KEY, OTHER), signed(STRANGER))


def test_every_requirement_must_hold() -> None:
    both = policy(requirement(KEY), requirement(STRANGER))
    refused("signature-untrusted", both, signed(KEY))
    approval = check(both, signed(KEY), signed(STRANGER))
    assert approval.key_ids == (KEY.public.key_id, STRANGER.public.key_id)
    refused("signature-untrusted", policy(requirement(KEY), {"type": "reject"}), signed(KEY))
    check(policy({"type": "insecureAcceptAnything"}, requirement(KEY)), signed(KEY))


def test_a_hint_tells_an_altered_signature_from_a_strangers_and_nothing_else() -> None:
    broken = formats.Signature(b"x", b"y", b"x", key_id=KEY.public.key_id)
    refused("signature-wrong", policy(requirement(KEY)), broken)
    refused("signature-untrusted", policy(requirement(KEY)), signed(STRANGER, hint="whatever"))
    check(policy(requirement(KEY)), signed(KEY, hint=STRANGER.public.key_id))
    refused("signature-wrong", policy(requirement(KEY)), signed(STRANGER, hint=KEY.public.key_id))


def test_a_bundle_names_no_repository() -> None:
    refused("signature-wrong", policy(requirement(KEY)), bundled(KEY))
    check(policy(requirement(KEY, identity="matchDigestOnly")), bundled(KEY))
    refused("signature-wrong", policy(requirement(KEY, identity="matchDigestOnly")), bundled(KEY, OTHER))
    refused("signature-untrusted", policy(requirement(KEY, identity="matchDigestOnly")), bundled(STRANGER))


def test_content_of_a_trusted_key_that_is_no_signature() -> None:
    payload = b'{"critical": {}}'
    refused("signature-wrong", policy(requirement(KEY)), formats.Signature(payload, KEY.sign(payload), payload))


def test_keys_may_lie_in_the_kbs() -> None:
    held = {"kbs:///default/cosign-public-key/x": KEY.public.to_pem()}
    made = policy(
        {"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign-public-key/x", "signedIdentity": {"type": "matchRepository"}}
    )
    assert check(made, signed(KEY), fetch=held.__getitem__).key_ids == (KEY.public.key_id,)


def test_a_key_that_is_none_is_refused() -> None:
    made = policy({"type": "sigstoreSigned", "keyData": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"})
    refused("malformed", made, signed(KEY))
