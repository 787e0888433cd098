"""Answers of Intel's PCS and of the caching services (PCCS) that speak like it: API v4, `/sgx/certification/v4/`.

tcb, qe/identity   {"tcbInfo": {...}, "signature": hex} and {"enclaveIdentity": ...}: what was signed is the inner
                   object's exact text, which is therefore cut out, not parsed and written again
pckcrl, rootcacrl  a CRL as DER, PEM, or hex of DER (PCCS)
issuer chains      PEM, URL-encoded, in a header of the answer
"""

from __future__ import annotations

import base64
import binascii
import json
import re

from enclave_cc.errors import PeerError
from enclave_cc.wire.sgx.certification import encode_pem_certificate, parse_pem_certificates
from enclave_cc.wire.sgx.collateral import DOCUMENT_LIMIT

PREFIX = "/sgx/certification/v4"
CHAIN_LIMIT = 32 << 10
CRL_LIMIT = 16 << 20

# What each answer names its issuer chain; the first is v4's.
PCK_CRL_CHAIN = ("sgx-pck-crl-issuer-chain",)
TCB_INFO_CHAIN = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
QE_IDENTITY_CHAIN = ("sgx-enclave-identity-issuer-chain",)

_SIGNATURE = re.compile(r"""\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*\Z""", re.ASCII)
_PEM_CRL = re.compile(rb"\s*-----BEGIN X509 CRL-----\s+([A-Za-z0-9+/=\s]+)-----END X509 CRL-----\s*\Z")
_ESCAPE = re.compile(rb"%([0-9a-fA-F]{2})")
_HEX = re.compile(rb"\s*([0-9a-fA-F]+)\s*\Z")


def parse_signed_document(body: bytes, name: str) -> tuple[str, bytes]:
    """(exact text, signature r‖s) of the document `name`: "tcbInfo" or "enclaveIdentity".

    Raises `PeerError("malformed")`.
    """
    if len(body) > DOCUMENT_LIMIT:
        raise PeerError("malformed", f"the service's {name} is too long")
    try:
        text = body.decode()
        opened = re.match(rf'\s*\{{\s*"{name}"\s*:\s*(?=\{{)', text)
        if opened is None:
            raise ValueError(name)
        _, end = json.JSONDecoder().raw_decode(text, opened.end())
        signature = _SIGNATURE.match(text, end)
        if signature is None:
            raise ValueError("signature")
    except (ValueError, RecursionError) as error:
        raise PeerError("malformed", f"the service's {name} is not a signed document") from error
    return text[opened.end() : end], bytes.fromhex(signature[1])


def parse_crl(body: bytes) -> bytes:
    """DER of a CRL in any of the forms that services answer. Raises `PeerError("malformed")`."""
    if len(body) > 2 * CRL_LIMIT:
        raise PeerError("malformed", f"a CRL has at most {CRL_LIMIT} bytes")
    if body[:1] == b"\x30" and _HEX.match(body) is None:
        return body
    if (found := _HEX.match(body)) is not None and len(found[1]) % 2 == 0:
        return bytes.fromhex(found[1].decode("ascii"))
    if (found := _PEM_CRL.match(body)) is not None:
        try:
            return base64.b64decode(b"".join(found[1].split()), validate=True)
        except binascii.Error:
            pass
    raise PeerError("malformed", "the service's CRL is neither DER, PEM nor hex")


def parse_issuer_chain(header: str | None) -> str:
    """A chain as PEM text, from its header. Raises `PeerError("malformed")`."""
    if header is None or len(header) > CHAIN_LIMIT:
        raise PeerError("malformed", "the service's answer has no issuer chain")
    raw = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), header.encode("utf-8", "replace"))  # RFC 3986, 2.1
    certificates = parse_pem_certificates(raw.replace(b"\r\n", b"\n").strip() + b"\n")
    if not certificates:
        raise PeerError("malformed", "the service's issuer chain is empty")
    return b"".join(map(encode_pem_certificate, certificates)).decode("ascii")
