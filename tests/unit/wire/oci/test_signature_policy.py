"""containers-policy.json(5): scopes, identities, refusals."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import signature_policy as policies
from enclave_cc.wire.oci.reference import Reference

DIGEST = "sha256:" + "ab" * 32
PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
SIGNED = {"type": "sigstoreSigned", "keyData": base64.b64encode(PEM.encode()).decode()}
REJECT = {"type": "reject"}


def parse(default: object = (REJECT,), **scopes: Any) -> policies.SignaturePolicy:
    return policies.SignaturePolicy.parse(json.dumps({"default": default, "transports": {"docker": scopes}}).encode())


def marked(name: str) -> list[dict[str, Any]]:
    """A requirement list that can be told from others."""
    return [{"type": "sigstoreSigned", "keyData": "-----BEGIN " + name}]


def found(policy: policies.SignaturePolicy, image: str) -> str:
    requirement = policy.requirements_for(Reference.parse(image))[0]
    if not isinstance(requirement, policies.SigstoreSigned):
        return "default"
    return requirement.keys[0].decode().removeprefix("-----BEGIN ")


SCOPES = [
    "host.example.com:5000/a/b:t",
    f"host.example.com:5000/a/b@{DIGEST}",
    "host.example.com:5000/a/b",
    "host.example.com:5000/a",
]
SCOPES += ["host.example.com:5000", "*.example.com", "*.com"]


@pytest.mark.parametrize(
    ("image", "scope"),
    [
        ("host.example.com:5000/a/b:t", SCOPES[0]),
        (f"host.example.com:5000/a/b@{DIGEST}", SCOPES[1]),
        ("host.example.com:5000/a/b:other", SCOPES[2]),
        ("host.example.com:5000/a/bb", SCOPES[3]),
        ("host.example.com:5000/ab", SCOPES[4]),
        ("other.example.com/x", SCOPES[5]),
        ("a.b.example.com:1/x", SCOPES[5]),
        ("example.com/x", SCOPES[6]),
        ("example.org/x", "default"),
        ("localhost/x", "default"),
    ],
)
def test_the_most_specific_scope_decides(image: str, scope: str) -> None:
    policy = parse(**{name: marked(name) for name in SCOPES})
    assert found(policy, image) == scope
    assert found(parse(**{name: marked(name) for name in [*SCOPES, ""]}), image) == (scope if scope != "default" else "")


def test_an_untagged_image_is_latest() -> None:
    assert found(parse(**{"host:1/a:latest": marked("x")}), "host:1/a") == "x"


def test_keys_are_read_as_pem_and_as_base64_of_it() -> None:
    for value in (PEM, base64.b64encode(PEM.encode()).decode()):
        requirement = parse([{"type": "sigstoreSigned", "keyData": value}]).default[0]
        assert isinstance(requirement, policies.SigstoreSigned)
        assert requirement.keys == (PEM.encode(),)
    requirement = parse([{"type": "sigstoreSigned", "keyPaths": ["kbs:///a/b/c", "kbs:///a/b/d"]}]).default[0]
    assert isinstance(requirement, policies.SigstoreSigned)
    assert requirement.key_uris == ("kbs:///a/b/c", "kbs:///a/b/d")
    assert requirement.identity.kind == "matchRepoDigestOrExact"


@pytest.mark.parametrize(
    "default",
    [
        [],
        None,
        [{"type": "unknown"}],
        [{"type": "reject", "extra": 1}],
        [{"type": "insecureAcceptAnything", "x": 1}],
        [{"type": "sigstoreSigned"}],
        [{**SIGNED, "keyPath": "kbs:///a/b/c"}],
        [{**SIGNED, "fulcio": {}}],
        [{**SIGNED, "rekorPublicKeyData": "x"}],
        [{**SIGNED, "signedIdentity": {"type": "whatever"}}],
        [{**SIGNED, "signedIdentity": {"type": "matchExact", "x": "y"}}],
        [{**SIGNED, "signedIdentity": {"type": "exactRepository"}}],
        [{"type": "sigstoreSigned", "keyPath": "/etc/key.pem"}],
        [{"type": "sigstoreSigned", "keyData": "not base64!"}],
        [{"type": "sigstoreSigned", "keyDatas": []}],
    ],
)
def test_refuses_what_it_does_not_know(default: object) -> None:
    """A requirement that is misread as nothing would let everything in."""
    with pytest.raises(PeerError) as caught:
        parse(default)
    assert caught.value.code in {"policy-invalid", "malformed"}


@pytest.mark.parametrize(
    "value", [{"default": [REJECT], "more": {}}, {"transports": {}}, [], {"default": [REJECT], "transports": {"docker": {"h": []}}}]
)
def test_refuses_policies_of_another_shape(value: object) -> None:
    with pytest.raises(PeerError):
        policies.SignaturePolicy.parse(json.dumps(value).encode())


def test_gpg_is_a_requirement_that_stays_one() -> None:
    policy = parse([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}])
    assert policy.default == (policies.SignedByGpg(),)


@pytest.mark.parametrize(
    ("identity", "image", "signed", "accepted"),
    [
        ({"type": "matchExact"}, "h:1/a:t", "h:1/a:t", True),
        ({"type": "matchExact"}, "h:1/a", "h:1/a:latest", True),
        ({"type": "matchExact"}, "h:1/a:t", "h:1/a:u", False),
        ({"type": "matchExact"}, "h:1/a:t", "h:1/a", False),
        ({"type": "matchExact"}, f"h:1/a@{DIGEST}", "h:1/a:t", False),
        ({"type": "matchRepoDigestOrExact"}, f"h:1/a@{DIGEST}", "h:1/a:t", True),
        ({"type": "matchRepoDigestOrExact"}, "h:1/a:t", "h:1/a", False),
        ({"type": "matchRepoDigestOrExact"}, f"h:1/b@{DIGEST}", "h:1/a:t", False),
        ({"type": "matchRepository"}, "h:1/a:t", "h:1/a", True),
        ({"type": "matchRepository"}, "h:1/a:t", "h:1/a:u", True),
        ({"type": "matchRepository"}, "h:1/a:t", "h:1/a/b", False),
        ({"type": "matchRepository"}, "busybox", "docker.io/library/busybox", True),
        ({"type": "exactReference", "dockerReference": "h:1/x:t"}, "h:1/a:u", "h:1/x:t", True),
        ({"type": "exactReference", "dockerReference": "h:1/x:t"}, "h:1/a:u", "h:1/a:u", False),
        ({"type": "exactRepository", "dockerRepository": "h:1/x"}, "h:1/a", "h:1/x:any", True),
        ({"type": "exactRepository", "dockerRepository": "h:1/x"}, "h:1/a", "h:1/a", False),
        ({"type": "remapIdentity", "prefix": "mirror:1", "signedPrefix": "h:2"}, "mirror:1/a:t", "h:2/a:t", True),
        ({"type": "remapIdentity", "prefix": "mirror:1", "signedPrefix": "h:2"}, "mirror:1/a:t", "mirror:1/a:t", False),
        ({"type": "remapIdentity", "prefix": "h:1/a", "signedPrefix": "h:2/z"}, "h:1/ab:t", "h:2/zb:t", False),
        ({"type": "remapIdentity", "prefix": "h:1/a", "signedPrefix": "h:2/z"}, "h:1/ab:t", "h:1/ab:t", True),
        ({"type": "matchDigestOnly"}, "h:1/a:t", None, True),
        ({"type": "matchRepository"}, "h:1/a:t", None, False),
        ({"type": "matchRepository"}, "h:1/a:t", "no reference at ALL", False),
    ],
)
def test_the_signed_reference_must_fit(identity: dict[str, Any], image: str, signed: str | None, accepted: bool) -> None:
    requirement = parse([{**SIGNED, "signedIdentity": identity}]).default[0]
    assert isinstance(requirement, policies.SigstoreSigned)
    assert requirement.identity.accepts(Reference.parse(image), signed) is accepted
