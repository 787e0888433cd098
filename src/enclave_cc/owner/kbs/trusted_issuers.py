"""Whose attestation tokens are accepted beside our own: `[token.trusted.NAME]` in kbs.toml.

    certificates = "other.crt"       PEM: the other's token certificates, or the authorities that issued them
    jwks = "other.jwks.json"         a key set (RFC 7517), such as the other's /.well-known/jwks.json
    issuer = "..."                   what `iss` must be
    tee_key_paths = ["/tee-pubkey"]  JSON pointers to the TEE key, looked at before the usual ones

The files are read again when they change, so that the other may rotate its keys.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from enclave_cc.crypto.jws import VerifyKey
from enclave_cc.errors import EnclaveCcError, PeerError, UsageError
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.kbs.tokens import TrustedIssuer
from enclave_cc.record import record
from enclave_cc.wire.rcar import token
from enclave_cc.wire.sgx.certification import parse_pem_certificates

CHECK_SECONDS = 5.0
KEY_SET_LIMIT = 1 << 20


@record
class TrustedIssuerFiles:
    """Where one issuer's certificates and keys lie."""

    name: str
    certificates: Path | None
    jwks: Path | None
    issuer: str | None
    key_pointers: tuple[str, ...]

    @classmethod
    def read(cls, name: str, section: Section, directory: Path) -> TrustedIssuerFiles:
        """Raises `UsageError("bad-config")`."""
        certificates, jwks = section.text("certificates"), section.text("jwks")
        if certificates is None and jwks is None:
            raise section.fault("certificates", "without certificates or jwks no token can be trusted")
        pointers = section.texts("tee_key_paths")
        if not all(pointer.startswith("/") for pointer in pointers):
            raise section.fault("tee_key_paths", "a JSON pointer begins with /")
        made = cls(
            name,
            None if certificates is None else directory / certificates,
            None if jwks is None else directory / jwks,
            section.text("issuer"),
            (*pointers, *token.KEY_POINTERS),
        )
        section.finish()
        return made

    def load(self) -> TrustedIssuer:
        """Raises `UsageError("bad-config")`."""
        certificates: tuple[bytes, ...] = ()
        if self.certificates is not None:
            try:
                text = read_file(self.certificates).replace(b"\r\n", b"\n").strip() + b"\n"
                certificates = tuple(parse_pem_certificates(text))
            except PeerError as error:
                raise UsageError("bad-config", f"{self.certificates} holds something else than PEM certificates") from error
        keys = {} if self.jwks is None else read_key_set(read_file(self.jwks), str(self.jwks))
        return TrustedIssuer(self.name, certificates, keys, self.issuer, self.key_pointers)


def read_key_set(data: bytes, where: str) -> Mapping[str, VerifyKey]:
    """The keys of a JWK set by `kid`; without one, by thumbprint. Keys that verify nothing here are left out.

    Raises `UsageError("bad-config")`, also when none is left.
    """
    try:
        document = json.loads(data[:KEY_SET_LIMIT])
        items = document["keys"]
        if not isinstance(items, list):
            raise TypeError("keys")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError("bad-config", f"{where} is not a JSON key set") from error
    keys: dict[str, VerifyKey] = {}
    for item in items:
        if not isinstance(item, Mapping) or item.get("use", "sig") != "sig":
            continue
        try:
            key = VerifyKey.from_jwk(item)
        except PeerError:
            continue
        if item.get("alg", key.algorithm) == key.algorithm:
            keys[str(item.get("kid", key.kid))] = key
    if not keys:
        raise UsageError("bad-config", f"{where} has no Ed25519, P-256 or RSA key that verifies signatures")
    return keys


class TrustedIssuers:
    """All of them, as their files stand. Safe for many threads."""

    def __init__(self, files: tuple[TrustedIssuerFiles, ...], *, now: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._now = now
        self._lock = threading.Lock()
        self._loaded = tuple(each.load() for each in files)
        self._checked = now()

    def __call__(self) -> tuple[TrustedIssuer, ...]:
        if self._files and self._now() >= self._checked + CHECK_SECONDS:
            with self._lock:
                self._checked = self._now()
                self._loaded = tuple(map(self._reload, self._files, self._loaded))
        return self._loaded

    @staticmethod
    def _reload(files: TrustedIssuerFiles, known: TrustedIssuer) -> TrustedIssuer:
        try:
            return files.load()
        except EnclaveCcError:  # half-written, or gone for a moment: what was known goes on
            return known


def read_file(path: Path) -> bytes:
    """A file of the configuration. Raises `UsageError("bad-config")`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError("bad-config", f"{path} cannot be read: {error.strerror}") from error
