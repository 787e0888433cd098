"""Answers of collateral services."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx import pcs
from enclave_cc.wire.sgx.collateral import Collateral

VECTORS = Path(__file__).parents[3] / "vectors/sgx"
PARSED = Collateral.parse((VECTORS / "phala-collateral.json").read_bytes())


def test_the_signed_text_is_cut_out_as_it_stands() -> None:
    for file, name in (("intel-tdx-tcb-info.json", "tcbInfo"), ("intel-tdx-qe-identity.json", "enclaveIdentity")):
        body = (VECTORS / file).read_bytes()
        text, signature = pcs.parse_signed_document(body, name)
        assert f'{{"{name}":{text},"signature":"{signature.hex()}"}}' == body.decode().strip()
    text, _ = pcs.parse_signed_document(b' { "tcbInfo" : {"a": [ 1,2 ]} , "signature" : "' + b"aA" * 64 + b'" } \n', "tcbInfo")
    assert text == '{"a": [ 1,2 ]}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"tcbInfo":[],"signature":"' + b"0" * 128 + b'"}',
        b'{"tcbInfo":{},"signature":"' + b"0" * 126 + b'"}',
        b'{"tcbInfo":{},"signature":"' + b"0" * 128 + b'"}{}',
        b'{"tcbInfo":{},"x":1,"signature":"' + b"0" * 128 + b'"}',
        b'{"enclaveIdentity":{},"signature":"' + b"0" * 128 + b'"}',
        b'{"tcbInfo":' + b'{"a":' * 100_000,
        b'{"tcbInfo":{' + b" " * (2 << 20),
    ],
    ids=lambda body: str(body[:40]),
)
def test_what_is_no_signed_document(body: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        pcs.parse_signed_document(body, "tcbInfo")
    assert refused.value.code == "malformed"


def test_crls_in_every_form() -> None:
    der = PARSED.pck_crl
    lines = base64.encodebytes(der)
    for body in (
        der,
        der.hex().encode(),
        der.hex().upper().encode() + b"\n",
        b"-----BEGIN X509 CRL-----\n" + lines + b"-----END X509 CRL-----\n",
    ):
        assert pcs.parse_crl(body) == der
    for broken in (b"", b"0", b"xyz", b"-----BEGIN X509 CRL-----\n=\n-----END X509 CRL-----", b"\xff"):
        with pytest.raises(PeerError):
            pcs.parse_crl(broken)


def test_issuer_chains() -> None:
    chain = PARSED.tcb_info_issuer_chain
    for header in (quote(chain), quote(chain, safe=""), quote(chain.replace("\n", "\r\n"))):
        assert pcs.parse_issuer_chain(header) == chain.strip() + "\n"
    for broken in (None, "", "%00", "%", "x" * 40_000, quote("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----")):
        with pytest.raises(PeerError) as refused:
            pcs.parse_issuer_chain(broken)
        assert refused.value.code == "malformed"
