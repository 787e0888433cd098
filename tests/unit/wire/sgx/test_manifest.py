"""The enclave manifest has one form, and nothing impossible in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.manifest import File, Manifest

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "role": "agent",
    "entrypoint": ["/usr/bin/python3"],
    "environment": {"A": "b"},
    "files": [["bin", "l", 511, "usr/bin"], ["usr", "d", 493, ""], ["usr/x", "f", 420, "ab" * 32]],
    "heap_size": 4096,
}


def encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_round_trip() -> None:
    manifest = Manifest.parse(encode(DOCUMENT))
    assert manifest.encode() == encode(DOCUMENT)
    assert manifest.files[2] == File("usr/x", "f", 0o644, "ab" * 32)


def test_names_that_are_not_utf8_survive() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    manifest = Manifest(role="app", entrypoint=("/x",), files=(File(name, "f", 0o644, "0" * 64),))
    assert Manifest.parse(manifest.encode()) == manifest


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": True},
        {"role": "both"},
        {"role": 1},
        {"entrypoint": []},
        {"entrypoint": [1]},
        {"entrypoint": ["a\0b"]},
        {"environment": {"A": 1}},
        {"environment": {"A=B": "c"}},
        {"environment": []},
        {"heap_size": 0},
        {"heap_size": 4097},
        {"heap_size": "4096"},
        {"extra": 1},
        {"files": {}},
        {"files": [["usr", "d", 493]]},
        {"files": [["usr", "d", "493", ""]]},
        {"files": [["/usr", "d", 493, ""]]},
        {"files": [["usr/../x", "d", 493, ""]]},
        {"files": [["usr//x", "d", 493, ""]]},
        {"files": [["", "d", 493, ""]]},
        {"files": [["usr", "d", 0o10000, ""]]},
        {"files": [["usr", "q", 493, ""]]},
        {"files": [["usr", "d", 493, "x"]]},
        {"files": [["usr", "f", 493, "AB" * 32]]},
        {"files": [["usr", "l", 493, ""]]},
        {"files": [["usr", "c", 493, "1,3"]]},
        {"files": [["b", "d", 493, ""], ["a", "d", 493, ""]]},
        {"files": [["a", "d", 493, ""], ["a", "d", 493, ""]]},
    ],
)
def test_refused(change: dict[str, object]) -> None:
    with pytest.raises(PeerError) as caught:
        Manifest.parse(encode({**DOCUMENT, **change}))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, json.dumps(DOCUMENT).encode(), encode(DOCUMENT) + b"\n"])
def test_other_forms_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        Manifest.parse(data)
