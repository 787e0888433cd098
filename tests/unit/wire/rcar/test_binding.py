"""Report data: known answers of upstream and our own."""

from __future__ import annotations

import base64
import hashlib

import pytest

from enclave_cc.crypto.jwk import PublicJwk
from enclave_cc.errors import UsageError
from enclave_cc.wire.rcar import binding, canonical

KEY = PublicJwk.parse(
    {
        "kty": "EC",
        "crv": "P-256",
        "alg": "ECDH-ES+A256KW",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }
)
NONCE = base64.b64encode(bytes(32)).decode()


def test_canonical_json_as_upstream_tests_it() -> None:
    """attestation-service/src/lib.rs, parse_runtimedata_json_binding"""
    text = canonical.encode({"b": 1, "a": "test", "c": {"d": "e"}})
    assert text == b'{"a":"test","b":1,"c":{"d":"e"}}'
    expected = "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    assert hashlib.sha384(text).hexdigest() == expected


def test_report_data_known_answer() -> None:
    expected = "d4bd1841ef158d7c3904848b81d834cafb2fb888d896151632a2aa5e8c258da20f8ba11735fc30d095f10ed26e055e09"
    assert binding.compute_report_data(NONCE, KEY, "").hex() == expected


def test_every_part_is_bound() -> None:
    seen = {
        binding.compute_report_data(NONCE, KEY, ""),
        binding.compute_report_data(NONCE[:-2] + "B=", KEY, ""),
        binding.compute_report_data(NONCE, KEY, '{"nvidia":{}}'),
        binding.compute_device_report_data(NONCE, KEY),
        binding.compute_report_data(NONCE, PublicJwk.parse({**KEY.members, "y": KEY.members["y"]}), " "),
    }
    assert len(seen) == 5


def test_padding() -> None:
    assert binding.pad(b"\1" * 48) == b"\1" * 48 + bytes(16)
    assert binding.pad(b"\1" * 64) == b"\1" * 64
    with pytest.raises(UsageError):
        binding.pad(bytes(65))
