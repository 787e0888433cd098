"""Challenges (RFC 7235 2.1), tokens, auth.json."""

from __future__ import annotations

import base64
import json

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import auth
from enclave_cc.wire.oci.reference import Reference


def test_reads_the_challenges_of_real_registries() -> None:
    header = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'
    (found,) = auth.parse_challenges(header)
    assert found.scheme == "bearer"
    assert found.parameters == {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "repository:a/b:pull,push",
    }
    assert auth.parse_challenges('Basic realm="basic-realm"') == (auth.Challenge("basic", {"realm": "basic-realm"}),)


def test_reads_several_challenges_and_quoted_pairs() -> None:
    found = auth.parse_challenges(r'Basic realm="a, \"b\"" , BEARER Realm=x, service = y, Negotiate')
    assert [c.scheme for c in found] == ["basic", "bearer", "negotiate"]
    assert found[0].parameters == {"realm": 'a, "b"'}
    assert found[1].parameters == {"realm": "x", "service": "y"}


@pytest.mark.parametrize("header", ["=", '"x"', 'Bearer realm="open', "x" * 9000, "Bearer ;", "\x00"])
def test_refuses_what_is_not_a_challenge(header: str) -> None:
    with pytest.raises(PeerError):
        auth.parse_challenges(header)


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_reads_a_token(name: str) -> None:
    found = auth.Token.parse(json.dumps({name: "abc", "expires_in": 300}).encode())
    assert (found.value.reveal(), found.lifetime) == (b"abc", 300)
    assert auth.Token.parse(json.dumps({name: "abc"}).encode()).lifetime == 60


@pytest.mark.parametrize("value", [{}, {"token": ""}, {"token": "a b"}, {"token": "a\r\nX: y"}, {"token": "é"}, {"token": 5}])
def test_refuses_a_token_that_cannot_be_a_header(value: object) -> None:
    with pytest.raises(PeerError):
        auth.Token.parse(json.dumps(value).encode())


def entry(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_the_longest_path_wins() -> None:
    auths = {"h:1": entry("host:p"), "h:1/a": entry("a:p:with:colons"), "https://index.docker.io/v1/": entry("hub:p"), "other": {}}
    file = auth.AuthFile.parse(json.dumps({"auths": auths, "credsStore": "x"}).encode())

    def who(image: str) -> str | None:
        found = file.find(Reference.parse(image))
        return f"{found.username}/{found.password.reveal().decode()}" if found else None

    assert who("h:1/a/b") == "a/p:with:colons"
    assert who("h:1/ab") == "host/p"
    assert who("busybox") == "hub/p"
    assert who("other.host/x:1") is None


@pytest.mark.parametrize("data", [b"x", b'{"auths": 5}', b'{"auths": {"h": {"auth": "eA=="}}}', b'{"auths": {"h": {"auth": "!"}}}'])
def test_a_broken_file_shows_nothing_of_itself(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        auth.AuthFile.parse(data)
    assert str(caught.value).startswith("malformed: the registry credential is not an auth.json.")
