"""The keys that sign attestation tokens: the current one, and retired ones until the last token they signed has expired.

    token.key, token.crt            the current key and its certificate
    retired-token-keys/UNIX_TIME.crt  certificates of keys that signed until then

Instances that share a directory notice a rotation by themselves: now and then, and at once when a token names a key
that they do not know.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from enclave_cc.crypto import certificate_chain, self_signed
from enclave_cc.crypto.jws import SigningKey, VerifyKey
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError
from enclave_cc.owner.replacement import replace_file
from enclave_cc.record import record

RETIRED = "retired-token-keys"
# How long an instance may go on signing with a retired key: it looks this often, and is given as much again.
CHECK_SECONDS = 5.0
_CERTIFICATE_SECONDS = 10 * 365 * 24 * 3600


@record
class KeySet:
    """What the directory holds. `retired`: (certificate as PEM, when it signed last)."""

    key: SigningKey
    certificate_pem: str | None = None
    retired: tuple[tuple[str, int], ...] = ()


@record
class _Known:
    signing: SigningKey
    jwk: Mapping[str, Any]
    verifying: Mapping[str, tuple[VerifyKey, Mapping[str, Any], float]]  # kid -> key, JWK, accepted until


class TokenKeys:
    """Safe for many threads. `lifetime`: seconds that a token lives, leeway included."""

    def __init__(self, load: Callable[[], KeySet], *, lifetime: float, now: Callable[[], float] = time.time) -> None:
        self._load = load
        self._lifetime = lifetime
        self._now = now
        self._lock = threading.Lock()
        self._known = self._read()
        self._checked = now()

    def current(self) -> tuple[SigningKey, Mapping[str, Any]]:
        """The key that signs, and its JWK for the token's header."""
        if self._now() >= self._checked + CHECK_SECONDS:
            self._reload()
        known = self._known
        return known.signing, known.jwk

    def find(self, kid: object) -> VerifyKey | None:
        """The key of this thumbprint, if it is current, or retired so lately that its tokens may live."""
        found = self._known.verifying.get(kid) if isinstance(kid, str) else None
        if found is None and isinstance(kid, str) and self._now() >= self._checked + 1:
            self._reload()  # at most once a second: anybody can name a key that nobody knows
            found = self._known.verifying.get(kid)
        return None if found is None or found[2] < self._now() else found[0]

    def published(self) -> list[Mapping[str, Any]]:
        """The JWKs for a key set document, the current one first."""
        self.current()
        now = self._now()
        return [jwk for _, jwk, until in self._known.verifying.values() if until >= now]

    def _reload(self) -> None:
        with self._lock:
            self._checked = self._now()
            # A directory in the middle of a rotation, or gone for a moment: what was known goes on.
            with contextlib.suppress(EnclaveCcError):
                self._known = self._read()

    def _read(self) -> _Known:
        loaded = self._load()
        jwk = _make_jwk(loaded.key.public, loaded.certificate_pem)
        verifying: dict[str, tuple[VerifyKey, Mapping[str, Any], float]] = {
            loaded.key.public.kid: (loaded.key.public, jwk, float("inf"))
        }
        for pem, retired_at in loaded.retired:
            key = certificate_chain.read_key(_der(pem))
            until = retired_at + self._lifetime + 2 * CHECK_SECONDS
            verifying.setdefault(key.kid, (key, _make_jwk(key, pem), until))
        return _Known(loaded.key, jwk, verifying)


def _make_jwk(key: VerifyKey, certificate_pem: str | None) -> dict[str, Any]:
    jwk: dict[str, Any] = {**key.to_jwk(), "kid": key.kid, "use": "sig"}
    if certificate_pem is not None:
        # A relying party that lists this certificate accepts our tokens ("passport" mode).
        jwk["x5c"] = [base64.b64encode(_der(certificate_pem)).decode()]
    return jwk


def _der(pem: str) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as error:
        raise UsageError("bad-config", "a token key's certificate is not PEM") from error


def read_kid(certificate_pem: str) -> str:
    """The id of a certificate's key. Raises `UsageError("bad-config")`."""
    return certificate_chain.read_key(_der(certificate_pem)).kid


def read_key_set(directory: Path) -> KeySet:
    """Raises `UsageError("not-found" | "bad-config")`, `EnvironmentFault("environment")`."""
    try:
        key = SigningKey.from_pem((directory / "token.key").read_bytes())
        certificate = (directory / "token.crt").read_text("ascii", "replace")
        retired = tuple(
            (path.read_text("ascii", "replace"), int(path.stem))
            for path in sorted((directory / RETIRED).glob("*.crt"))
            if path.stem.isdecimal()
        )
    except FileNotFoundError as error:
        raise UsageError(
            "not-found", f"there is no {error.filename}", "Make a token key with `enclave-cc kbs token rotate`."
        ) from error
    except OSError as error:
        raise EnvironmentFault("environment", f"{error.filename} cannot be read: {error.strerror}") from error
    if certificate_chain.read_key(_der(certificate)).kid != key.public.kid:
        raise UsageError(
            "bad-config",
            f"{directory / 'token.crt'} is not the certificate of token.key: a rotation was cut off",
            "Finish it with `enclave-cc kbs token rotate`.",
        )
    return KeySet(key, certificate, retired)


def rotate(directory: Path, *, now: float) -> str:
    """Replaces the token key; the id (kid) of the new one.

    The old key's certificate is kept first, so that tokens are accepted whenever this is cut off; its private half is
    gone afterwards. Retired certificates older than a day go too.
    """
    retired = directory / RETIRED
    try:
        retired.mkdir(mode=0o755, exist_ok=True)
        try:
            old = read_key_set(directory).certificate_pem
        except UsageError:  # no key yet, or an earlier rotation was cut off, which had kept it
            old = None
        if old is not None:
            at = int(now)
            while (retired / f"{at}.crt").exists():  # rotated twice within a second
                at += 1
            replace_file(retired / f"{at}.crt", old.encode(), mode=0o644)
        for path in retired.glob("*.crt"):
            if path.stem.isdecimal() and int(path.stem) < now - 86400:
                path.unlink()
        key = SigningKey.generate("ES256")
        start = int(now) - 3600  # clocks of relying parties may be behind
        certificate = self_signed.make_certificate(
            key.to_pem(),
            common_name="enclave-cc attestation tokens",
            hosts=(),
            not_before=start,
            not_after=start + _CERTIFICATE_SECONDS,
        )
        replace_file(directory / "token.crt", certificate, mode=0o644)
        replace_file(directory / "token.key", key.to_pem(), mode=0o600)
    except OSError as error:
        raise EnvironmentFault("environment", f"{error.filename} cannot be written: {error.strerror}") from error
    return key.public.kid
