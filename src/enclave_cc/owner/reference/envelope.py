"""DSSE envelopes: how in-toto statements are signed (secure-systems-lab/dsse, protocol and envelope v1.0.2).

    {"payloadType": text, "payload": b64, "signatures": [{"keyid": text, "sig": b64}]}
    signed bytes: "DSSEv1" SP len(type) SP type SP len(payload) SP payload, lengths in decimal

Signatures are cosign's: Ed25519, ECDSA in DER, RSA PKCS#1. `keyid` is a hint; here the SHA-256 of the public key's DER.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from enclave_cc.crypto.signature import PublicKey
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical

MAX_SIZE = 1024 * 1024
MAX_SIGNATURES = 16
_WHAT = "the DSSE envelope"


@record
class Opened:
    """A payload whose signature by `key_id` was verified."""

    payload: bytes
    key_id: str


def sign(payload: bytes, payload_type: str, key: SigningKey) -> bytes:
    """The envelope as JSON text."""
    signature = base64.b64encode(key.sign(_encode(payload_type, payload))).decode()
    envelope = {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key.public.key_id, "sig": signature}],
    }
    return json.dumps(envelope, indent=2).encode() + b"\n"


def open_envelope(body: bytes, payload_type: str, keys: Iterable[PublicKey]) -> Opened:
    """The payload of an envelope that one of `keys` signed.

    1. The envelope is JSON of the form above, not larger than `MAX_SIZE`, and its type is `payload_type`.
    2. One of its signatures verifies with one of `keys`. The hint `keyid` decides nothing: each key is tried.

    Raises `PeerError`: "malformed" (1), "signature-untrusted" (2: by none of these keys), "signature-wrong" (2: it names
    one of them and does not fit).
    """
    # 1
    if len(body) > MAX_SIZE:
        raise PeerError("malformed", f"{_WHAT} is larger than {MAX_SIZE} bytes")
    envelope = canonical.parse_object(body, _WHAT)
    found = canonical.take_text(envelope, "payloadType", _WHAT)
    if found != payload_type:
        raise PeerError("malformed", f"{_WHAT} holds {foreign(found)}, wanted is {payload_type}")
    payload = _decode(envelope, "payload")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise PeerError("malformed", f"{_WHAT} has no list of 1 to {MAX_SIGNATURES} signatures")
    if not all(isinstance(each, Mapping) for each in signatures):
        raise PeerError("malformed", f"a signature of {_WHAT} is no object")
    # 2
    signed, known, hints = _encode(payload_type, payload), list(keys), set()
    for each in signatures:
        raw = _decode(each, "sig")
        hints.add(each.get("keyid") if isinstance(each.get("keyid"), str) else "")
        for key in known:
            try:
                key.verify(raw, signed)
            except PeerError:
                continue
            return Opened(payload, key.key_id)
    if any(key.key_id in hints for key in known):
        raise PeerError("signature-wrong", f"{_WHAT} was changed: the signature of a key that is named does not fit")
    shown = ", ".join(sorted(foreign(hint)[:16] for hint in hints if hint)) or "keys without a name"
    raise PeerError(
        "signature-untrusted",
        f"{_WHAT} is signed by {shown}, and by no key that the owner named",
        "Name the builder's key with `enclave-cc refvals key add NAME FILE`.",
    )


def _encode(payload_type: str, payload: bytes) -> bytes:
    """PAE, what a signature is over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _decode(value: Mapping[str, Any], name: str) -> bytes:
    text = canonical.take_text(value, name, _WHAT)
    try:
        # DSSE: standard or URL-safe alphabet, both must be taken.
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", f"{name} of {_WHAT} is not base64") from error
