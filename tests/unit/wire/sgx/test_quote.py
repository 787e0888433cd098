"""Quotes and certification data, on real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.certification import CertificationData, encode_pem_certificate, parse_pem_certificates
from enclave_cc.wire.sgx.quote import Quote, QuoteHeader

VECTORS = Path(__file__).parents[3] / "vectors/sgx"
QUOTES = [VECTORS / "phala-quote.bin", VECTORS / "trustee-debug-quote.bin"]


@pytest.mark.parametrize("path", QUOTES, ids=lambda path: path.stem)
def test_a_real_quote_round_trips(path: Path) -> None:
    data = path.read_bytes()
    quote = Quote.parse(data)
    assert quote.encode() == data
    assert quote.signed_bytes() == data[:432]
    assert quote.authentication_data == bytes(range(32))
    assert quote.certification.type == 5
    assert [der[:2] for der in quote.certification.certificates()] == [b"\x30\x82"] * 3


def test_header_of_a_real_quote() -> None:
    header = Quote.parse(QUOTES[0].read_bytes()).header
    assert (header.qe_svn, header.pce_svn) == (10, 15)
    assert header.user_data.hex() == "3987622ee6968a54977c8626ef47123500000000"


def test_any_cut_and_any_trailing_byte_is_refused() -> None:
    data = QUOTES[0].read_bytes()
    for size in [*range(0, 1100, 7), *range(1100, len(data), 97), len(data) - 1]:
        with pytest.raises(PeerError):
            Quote.parse(data[:size])
    with pytest.raises(PeerError):
        Quote.parse(data + b"\0")
    with pytest.raises(PeerError):
        Quote.parse(data + bytes(200_000))


@pytest.mark.parametrize(("offset", "value"), [(0, 4), (0, 2), (2, 3), (4, 0x81)])
def test_other_kinds_of_quotes_are_refused(offset: int, value: int) -> None:
    header = bytearray(QuoteHeader(qe_svn=1, pce_svn=1).encode())
    header[offset] = value
    with pytest.raises(PeerError):
        QuoteHeader.parse(bytes(header))


def test_the_chain_has_one_spelling() -> None:
    certification = Quote.parse(QUOTES[0].read_bytes()).certification
    ders = certification.certificates()
    text = b"".join(map(encode_pem_certificate, ders))
    for good in (text, text + b"\0", text[:-1], text[:-1] + b"\0"):
        assert CertificationData(5, good).certificates() == ders
    last = text.rindex(b"=")
    for bad in (
        text.replace(b"\n", b"\r\n"),
        text + b"\n",
        text + b"\0\0",
        b"\n" + text,
        text.replace(b"\n-----END", b"\n\n-----END", 1),
        text[: last - 1] + bytes([text[last - 1] + 1]) + text[last:],  # the padding bits of base64
        text + encode_pem_certificate(ders[2]),
        b"".join(map(encode_pem_certificate, ders[:2])),
        b"",
    ):
        with pytest.raises(PeerError) as caught:
            CertificationData(5, bad).certificates()
        assert caught.value.code == "malformed"


def test_other_certification_types_carry_no_chain() -> None:
    data = CertificationData(1, bytes(36))
    assert CertificationData.parse(data.encode()) == data
    with pytest.raises(PeerError, match="type 1"):
        data.certificates()


def test_pem_text_with_anything_else_in_it() -> None:
    for bad in (b"hello", b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(PeerError):
            parse_pem_certificates(bad)
    assert parse_pem_certificates(b"") == []
