"""Signed notes with Ed25519 keys: C2SP signed-note.

    text, ending in a newline
    (empty line)
    — NAME BASE64(key id, 4 bytes || signature)
    ...

A key is known by its name and its id, which is a hash over both name and key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

from enclave_cc.crypto import ed25519
from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.record import record

# The specification wants 16 signatures accepted, of up to 5 kB each.
MAX_NOTE = 128 * 1024
MAX_SIGNATURES = 64
MAX_NAME = 256
_ED25519 = b"\1"
_MARK = "\N{EM DASH} "


@record
class VerifierKey:
    """A name and an Ed25519 public key (32 bytes): whose signature a reader relies on."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if not is_name(self.name) or len(self.public) != ed25519.PUBLIC_KEY_SIZE:
            raise PeerError("malformed", "this cannot be the name and the key of a log")

    @property
    def id(self) -> bytes:
        """Four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """A vkey, `NAME+ID+KEY`. Raises `PeerError("malformed")`."""
        name, *rest = text.split("+", 2)
        if len(rest) != 2:
            raise PeerError("malformed", "the verifier key is not NAME+ID+KEY")
        raw = decode_base64(rest[1], "the verifier key")
        if raw[:1] != _ED25519:
            raise PeerError("malformed", "the verifier key is not of the type Ed25519 (1)")
        key = cls(name, raw[1:])
        if rest[0] != key.id.hex():
            raise PeerError("malformed", "the verifier key's id is not that of its name and key")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"


@record
class Signature:
    """A line below a note: whose it says it is, and what. Unverified."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        return f"{_MARK}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}"


@record
class Note:
    """A text, which ends in a newline, and the signatures below it. Unverified until `verify` returned it."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """Raises `PeerError("malformed")`."""
        if len(data) > MAX_NOTE:
            raise PeerError("malformed", f"the note is longer than {MAX_NOTE} bytes")
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            raise PeerError("malformed", "the note is not UTF-8") from error
        if any(c < " " and c != "\n" for c in whole):
            raise PeerError("malformed", "the note has control characters")
        text, separator, below = whole.rpartition("\n\n")
        if not separator or not below.endswith("\n"):
            raise PeerError("malformed", "the note has no signatures below an empty line")
        lines = below[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise PeerError("malformed", f"the note has more than {MAX_SIGNATURES} signatures")
        return cls(text + "\n", tuple(_parse_signature(line) for line in lines))

    def encode(self) -> bytes:
        return (self.text + "\n" + "".join(f"{signature}\n" for signature in self.signatures)).encode()

    def verify(self, keys: Sequence[VerifierKey]) -> VerifierKey:
        """The first of `keys` whose signature the note bears.

        1. A signature whose name and id are a known key's verifies; one that does not condemns the whole note.
        2. There is at least one such signature. Those of unknown keys are not looked at.

        Raises `PeerError("audit-signature")`.
        """
        message = self.text.encode()
        known = {(key.name, key.id): key for key in keys}
        found = None
        # 1
        for signature in self.signatures:
            key = known.get((signature.name, signature.key_id))
            if key is not None:
                what = f"the signature of {foreign(key.name)} below the note is wrong"
                ed25519.verify(key.public, signature.signature, message, code="audit-signature", what=what)
                found = found or key
        # 2
        if found is None:
            raise PeerError("audit-signature", "the note bears no signature of a key that was given")
        return found


@record
class NoteSigner:
    """Signs notes under a name. Raises `UsageError("usage")` for a name that no note can bear."""

    name: str
    _key: ed25519.SigningKey

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise UsageError("usage", f"{foreign(self.name)!r} cannot name a log's key: no spaces, no +")

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey(self.name, self._key.public)

    def sign(self, text: str) -> Note:
        """`text` ends in a newline and has no other control character."""
        signature = Signature(self.name, self.verifier.id, self._key.sign(text.encode()))
        return Note(text, (signature,))

    def __repr__(self) -> str:
        return f"NoteSigner({self.verifier})"


def is_name(name: str) -> bool:
    """Not empty, no Unicode space or control character, no plus."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not any(c.isspace() or c == "+" for c in name)


def decode_base64(text: str, what: str) -> bytes:
    """RFC 4648, 4, in its only form: padded, no other characters, no bits to spare. Raises `PeerError("malformed")`."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise PeerError("malformed", f"{what} is base64 in another form")
    return data


def _parse_signature(line: str) -> Signature:
    name, separator, encoded = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not separator or not is_name(name):
        raise PeerError("malformed", "a line below the note is no signature")
    raw = decode_base64(encoded, "a signature of the note")
    if len(raw) <= 4:
        raise PeerError("malformed", "a signature of the note is too short")
    return Signature(name, raw[:4], raw[4:])
