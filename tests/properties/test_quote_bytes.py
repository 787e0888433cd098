"""No byte of a real quote, or of what is signed in its collateral, can change unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.errors import PeerError
from enclave_cc.owner.verifier.quote import verify_quote
from enclave_cc.owner.verifier.roots import intel_root
from enclave_cc.wire.sgx.collateral import Collateral

VECTORS = Path(__file__).parents[1] / "vectors/sgx"
QUOTE = (VECTORS / "phala-quote.bin").read_bytes()
COLLATERAL = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())
AT = 1751000000
ROOTS = [intel_root()]
REASONS = {"malformed", "untrusted-root", "debug-enclave", "collateral-refused", "tcb-refused", "quote-refused"}

# header and report body; size; signature, attestation key, QE report, its signature, authentication data; PCK chain
REGIONS = {"body": (0, 432), "size": (432, 436), "signature data": (436, 1052), "chain": (1052, len(QUOTE))}


def refuse(quote: bytes, collateral: Collateral, what: object) -> None:
    try:
        verify_quote(quote, collateral, roots=ROOTS, at=AT)
    except PeerError as error:
        assert error.code in REASONS, what
    else:
        pytest.fail(f"accepted in spite of a changed byte: {what}")


def test_the_unchanged_quote_is_accepted() -> None:
    assert verify_quote(QUOTE, COLLATERAL, roots=ROOTS, at=AT).root == "intel"


@pytest.mark.parametrize("region", REGIONS)
def test_every_single_byte_of_the_quote(region: str) -> None:
    changed = bytearray(QUOTE)
    for offset in range(*REGIONS[region]):
        changed[offset] ^= 1 << offset % 8
        refuse(bytes(changed), COLLATERAL, offset)
        changed[offset] = QUOTE[offset]


@given(offset=st.integers(0, len(QUOTE) - 1), mask=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_value_at_any_offset(offset: int, mask: int) -> None:
    refuse(QUOTE[:offset] + bytes([QUOTE[offset] ^ mask]) + QUOTE[offset + 1 :], COLLATERAL, (offset, mask))


def test_white_space_in_the_chain_is_no_hiding_place() -> None:
    """Every byte that a lenient PEM reader ignores, as each other byte that it ignores."""
    for offset in range(1052, len(QUOTE)):
        if QUOTE[offset] in b"\n\0":
            for other in b"\r \t\0\n":
                if other != QUOTE[offset]:
                    refuse(QUOTE[:offset] + bytes([other]) + QUOTE[offset + 1 :], COLLATERAL, (offset, other))


def test_every_single_byte_of_the_signatures_and_crls() -> None:
    for member in ("tcb_info_signature", "qe_identity_signature", "pck_crl", "root_ca_crl"):
        value = bytearray(getattr(COLLATERAL, member))
        for offset, byte in enumerate(value):
            value[offset] ^= 1 << offset % 8
            refuse(QUOTE, replace(COLLATERAL, **{member: bytes(value)}), (member, offset))
            value[offset] = byte


@given(member=st.sampled_from(["tcb_info", "qe_identity"]), at=st.integers(0, 1 << 20), mask=st.integers(1, 127))
@settings(max_examples=200, deadline=None)
def test_any_byte_of_the_signed_documents(member: str, at: int, mask: int) -> None:
    text: str = getattr(COLLATERAL, member)
    offset = at % len(text)
    changed = text[:offset] + chr(ord(text[offset]) ^ mask) + text[offset + 1 :]
    refuse(QUOTE, replace(COLLATERAL, **{member: changed}), (member, offset, mask))
