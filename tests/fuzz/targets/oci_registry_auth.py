"""Challenges, tokens, auth.json and references."""

from __future__ import annotations

import contextlib

from enclave_cc.errors import PeerError
from enclave_cc.wire.oci import auth
from enclave_cc.wire.oci.reference import Reference

SEEDS: list[bytes] = [
    b'Bearer realm="https://auth.example/token",service="s",scope="repository:a/b:pull", Basic realm="x\\"y"',
    b'{"token":"abc","expires_in":300}',
    b'{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"h:1/a":{"auth":"dTpw"}}}',
    b"host.example:5000/a/b-c__d:tag@sha256:" + b"ab" * 32,
]


def target(data: bytes) -> None:
    text = data.decode("latin-1")
    for parse, given in ((auth.parse_challenges, text), (Reference.parse_hostile, text)):
        with contextlib.suppress(PeerError):
            parse(given)
    for read in (auth.Token.parse, auth.AuthFile.parse):
        with contextlib.suppress(PeerError):
            read(data)
