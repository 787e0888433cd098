"""Attestation tokens: EAR, signed ES256, as Trustee's attestation service issues them."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enclave_cc import __version__
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.policy.appraisal import Appraisal
from enclave_cc.wire.rcar import token as wire

VERIFIER_ID = {"developer": "https://confidentialcontainers.org", "build": f"enclave-cc {__version__}"}
# Clocks of issuer and verifier may differ by this much, as upstream's verifier allows.
LEEWAY = 60


class TokenIssuer:
    """Signs tokens and verifies its own. Safe for many threads."""

    def __init__(
        self,
        key: SigningKey,
        *,
        certificate_pem: str | None,
        issuer: str,
        lifetime: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._issuer = issuer
        self._lifetime = lifetime
        self._now = now
        self.jwk: dict[str, Any] = dict(key.public.to_jwk())
        if certificate_pem is not None:
            # A relying party that lists this certificate accepts our tokens ("passport" mode).
            self.jwk["x5c"] = [base64.b64encode(ssl.PEM_cert_to_DER_cert(certificate_pem)).decode()]

    def issue(self, appraisals: Sequence[tuple[str, Appraisal]]) -> str:
        """A token over (TEE class, appraisal) pairs; submodules are named cpu0, gpu0, gpu1, ..."""
        now = int(self._now())
        submods: dict[str, Any] = {}
        for tee_class, appraisal in appraisals:
            index = sum(1 for name in submods if name.rstrip("0123456789") == tee_class)
            submods[f"{tee_class}{index}"] = appraisal.to_submod()
        payload = {
            "eat_profile": wire.PROFILE,
            "iat": now,
            "exp": now + self._lifetime,
            "iss": self._issuer,
            wire.VERIFIER_ID: VERIFIER_ID,
            "submods": submods,
        }
        return self._key.sign(payload, {"jwk": self.jwk})

    def verify(self, token: str) -> Mapping[str, Any]:
        """The claims of a token that this issuer signed and that has not expired.

        1. Signature by our own key; the header's `jwk` is not looked at, it can only name another key.
        2. `exp` is there and not past (60 s leeway).
        3. It is an EAR with submodules.

        Raises `PeerError("unauthenticated")`.
        """
        # 1
        _, claims = self._key.public.verify(token)
        # 2
        expires = claims.get("exp")
        if type(expires) is not int or expires + LEEWAY <= self._now():
            raise PeerError("unauthenticated", "the token has expired")
        # 3
        if not isinstance(claims.get("submods"), Mapping):
            raise PeerError("unauthenticated", "the token is not an attestation result")
        return claims
