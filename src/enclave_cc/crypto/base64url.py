"""base64url without padding (RFC 4648 section 5, RFC 7515 section 2), decoded strictly."""

from __future__ import annotations

import base64
import re

from enclave_cc.errors import PeerError

_ALPHABET = re.compile(rb"[A-Za-z0-9_-]*\Z")


def encode(data: bytes) -> str:
    """`data` as base64url text without `=`."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: object, what: str, *, code: str = "malformed") -> bytes:
    """The bytes of base64url text; `what` names the field in the message.

    Raises `PeerError(code)` for anything but the one canonical spelling: other alphabet, padding, white space, a
    length that no encoder makes, or stray bits in the last character (which would give one value two spellings).
    """
    if not isinstance(text, str):
        raise PeerError(code, f"{what} is not base64url text")
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError as error:
        raise PeerError(code, f"{what} is not base64url text") from error
    if _ALPHABET.match(raw) is None or len(raw) % 4 == 1:
        raise PeerError(code, f"{what} is not base64url text")
    data = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
    if encode(data) != text:
        raise PeerError(code, f"{what} is not canonical base64url")
    return data
