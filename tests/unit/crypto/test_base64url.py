from __future__ import annotations

import os

import pytest

from enclave_cc.crypto import base64url
from enclave_cc.errors import PeerError


@pytest.mark.parametrize("size", range(10))
def test_round_trip(size: int) -> None:
    data = os.urandom(size)
    assert base64url.decode(base64url.encode(data), "x") == data
    assert "=" not in base64url.encode(data)


@pytest.mark.parametrize("text", ["A", "AA=", "AA==", "A A", "AB", "AAB", "+/", "AA\n", "é", 5, None, b"AA"])
def test_only_the_canonical_spelling(text: object) -> None:
    with pytest.raises(PeerError) as refused:
        base64url.decode(text, "the field")
    assert "the field" in str(refused.value)
