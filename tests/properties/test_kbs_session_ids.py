"""Session ids of the KBS: what it made is read back, anything else is refused."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.session_ids import SessionIds
from enclave_cc.owner.kbs.session_keys import SessionKeys

IDS = SessionIds(SessionKeys(lambda: (Secret(bytes(range(32))),), lifetime=300))
NAMES = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=32)
MADE = IDS.make("sgx", 2_000_000_000)


def unknown(text: str, now: float = 0) -> None:
    with pytest.raises(PeerError) as refused:
        IDS.read(text, now)
    assert refused.value.code == "unauthenticated"
    assert refused.value.what == "there is no such session, or it has expired"


@given(NAMES, st.integers(1, (1 << 64) - 1))
def test_an_id_is_read_as_it_was_made(tee: str, expires: int) -> None:
    made = IDS.make(tee, expires)
    assert IDS.read(made.text, expires - 1) == made
    assert (made.tee, made.expires) == (tee, expires)
    unknown(made.text, expires)
    assert IDS.make(tee, expires).nonce != made.nonce


@given(st.one_of(st.text(), st.text(string.ascii_letters + string.digits + "-_", min_size=60, max_size=140)))
def test_any_text_is_refused(text: str) -> None:
    unknown(text)


@given(st.binary(min_size=58, max_size=90))
def test_any_bytes_are_refused(raw: bytes) -> None:
    unknown(base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


@given(st.integers(0, len(MADE.text) - 1), st.sampled_from(string.ascii_letters + string.digits + "-_=. \n\0"))
def test_any_change_is_refused(position: int, character: str) -> None:
    if MADE.text[position] != character:
        unknown(MADE.text[:position] + character + MADE.text[position + 1 :])


@given(st.integers(0, len(MADE.text)), st.text(min_size=1, max_size=3))
def test_cut_and_longer_ones_are_refused(size: int, tail: str) -> None:
    if size < len(MADE.text):
        unknown(MADE.text[:size])
    unknown(MADE.text + tail)


@pytest.mark.parametrize("tee", ["", "x" * 33])
def test_names_have_a_size(tee: str) -> None:
    with pytest.raises(ValueError, match="32"):
        IDS.make(tee, 1)
