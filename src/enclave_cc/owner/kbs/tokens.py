"""Attestation tokens: EAR, signed ES256, as Trustee's attestation service issues them; and whose tokens are accepted.

A token says who signed it by its header: `kid` (one of our own keys, or of a listed key set), or `jwk` with a
certificate chain `x5c` that leads to a listed certificate. The header's own key is never believed for itself.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enclave_cc import __version__
from enclave_cc.crypto import certificate_chain, jws
from enclave_cc.crypto.jwk import PublicJwk
from enclave_cc.crypto.jws import VerifyKey
from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.token_keys import TokenKeys
from enclave_cc.owner.policy.appraisal import Appraisal
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import token as wire

VERIFIER_ID = {"developer": "https://confidentialcontainers.org", "build": f"enclave-cc {__version__}"}
# Clocks of issuer and verifier may differ by this much, as upstream's verifier allows.
LEEWAY = 60
# The attester that got a token soon comes back with it, more than once.
_REMEMBERED = 512


@record
class TrustedIssuer:
    """Somebody else whose attestation tokens the owner accepts: that is trust in all of their appraisals.

    `certificates`: DER of anchors for `x5c`; `keys`: by `kid`; `issuer`: what `iss` must be, if anything.
    """

    name: str
    certificates: tuple[bytes, ...] = ()
    keys: Mapping[str, VerifyKey] = field(default_factory=dict)
    issuer: str | None = None
    key_pointers: tuple[str, ...] = wire.KEY_POINTERS


@record
class AttestationToken:
    """A token that was verified. Only `TokenIssuer.verify` makes one. `issuer`: None for our own."""

    claims: Mapping[str, Any]
    tee_key: PublicJwk
    issuer: str | None = None


class TokenIssuer:
    """Signs tokens, and verifies its own and those of listed issuers. Safe for many threads."""

    def __init__(
        self,
        keys: TokenKeys,
        *,
        issuer: str,
        lifetime: int,
        trusted: Callable[[], Sequence[TrustedIssuer]] = tuple,
        rsa1_5: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._lifetime = lifetime
        self._trusted = trusted
        self._rsa1_5 = rsa1_5
        self._now = now
        self._signed: OrderedDict[str, tuple[str, Mapping[str, Any]]] = OrderedDict()  # token -> kid, claims
        self._lock = threading.Lock()

    def issue(self, appraisals: Sequence[tuple[str, Appraisal]], *, token_id: str | None = None) -> str:
        """A token over (TEE class, appraisal) pairs; submodules are named cpu0, gpu0, gpu1, ...; `token_id`: its `jti`."""
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
        if token_id is not None:
            payload["jti"] = token_id
        key, jwk = self._keys.current()
        token = key.sign(payload, {"kid": key.public.kid, "jwk": jwk})
        self._remember(token, key.public.kid, jws.read_payload(token))
        return token

    def published_keys(self) -> list[Mapping[str, Any]]:
        """The JWKs that verify our tokens."""
        return self._keys.published()

    def verify(self, token: str) -> AttestationToken:
        """A token that one of our keys, or an issuer that the owner lists, signed.

        1. The header names a key of ours; or a `jwk` whose certificate chain leads to a listed certificate; or, without
           `jwk`, a `kid` of a listed key set.
        2. The signature is by that key, with that key's algorithm. For one of ours this is known, if this process signed
           the token or has verified it lately.
        3. `exp` is there and not past, `nbf` is not to come (60 s leeway); `iss` is as listed, where it is.
        4. Ours are EARs with submodules; all carry a usable TEE key.

        Raises `PeerError("unauthenticated")`.
        """
        # 1
        issuer, known = None, self._recall(token)
        if known is not None:
            claims = known
        else:
            header = jws.read_header(token)
            key = self._keys.find(header.get("kid"))
            if key is None:
                key, issuer = self._find_foreign(header)
            # 2
            _, claims = key.verify(token)
            if issuer is None:
                self._remember(token, key.kid, claims)
        # 3
        now = self._now()
        expires, start = claims.get("exp"), claims.get("nbf", 0)
        if type(expires) is not int or expires + LEEWAY <= now:
            raise PeerError("unauthenticated", "the token has expired")
        if type(start) is not int or start - LEEWAY > now:
            raise PeerError("unauthenticated", "the token is not valid yet")
        if issuer is not None and issuer.issuer is not None and claims.get("iss") != issuer.issuer:
            raise PeerError("unauthenticated", "the token is of another issuer than the owner lists")
        # 4
        if issuer is None and not isinstance(claims.get("submods"), Mapping):
            raise PeerError("unauthenticated", "the token is not an attestation result")
        pointers = (wire.EAR_KEY,) if issuer is None else issuer.key_pointers
        tee_key = wire.find_tee_key(claims, pointers, rsa1_5=self._rsa1_5)
        return AttestationToken(claims, tee_key, None if issuer is None else issuer.name)

    def _remember(self, token: str, kid: str, claims: Mapping[str, Any]) -> None:
        with self._lock:
            self._signed[token] = kid, claims
            if len(self._signed) > _REMEMBERED:
                self._signed.popitem(last=False)

    def _recall(self, token: str) -> Mapping[str, Any] | None:
        """The claims of a token that one of our keys has signed, if that key is still ours."""
        with self._lock:
            known = self._signed.get(token)
        return None if known is None or self._keys.find(known[0]) is None else known[1]

    def _find_foreign(self, header: Mapping[str, Any]) -> tuple[VerifyKey, TrustedIssuer]:
        jwk = header.get("jwk")
        for issuer in self._trusted():
            if isinstance(jwk, Mapping):
                if issuer.certificates and (key := self._endorsed(jwk, issuer)) is not None:
                    return key, issuer
            elif (known := issuer.keys.get(str(header.get("kid")))) is not None:
                return known, issuer
        raise PeerError("unauthenticated", "the token is signed by nobody whom the owner lists")

    def _endorsed(self, jwk: Mapping[str, Any], issuer: TrustedIssuer) -> VerifyKey | None:
        chain = jwk.get("x5c")
        if not isinstance(chain, list) or not 1 <= len(chain) <= certificate_chain.MAX_CERTIFICATES:
            return None
        try:
            decoded = [base64.b64decode(item, validate=True) for item in chain]
            signer = certificate_chain.find_signer(decoded, issuer.certificates, self._now())
            return signer if VerifyKey.from_jwk(jwk).kid == signer.kid else None
        except (PeerError, binascii.Error, ValueError, TypeError):
            return None
