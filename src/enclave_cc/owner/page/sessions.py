"""Who looks at the page: an admin token is exchanged for a cookie, which any KBS process can read.

    cookie = base64url(nonce || AES-256-GCM(page key, {"subject", "role", "provider", "key", "expires"}))

The cookie names the role, and the key that signed the token; both are looked up at each request, so that who had a role or a
key that is taken away is out at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from typing import Any

from enclave_cc.crypto import aead, base64url
from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.session_keys import Derived, SessionKeys
from enclave_cc.record import record

# The prefix has browsers take the cookie from this very origin only, and over TLS only.
COOKIE = "__Host-enclave-cc-page"
_LONGEST = 4096
_AAD = b"enclave-cc/kbs-page/2"


@record
class PageSession:
    """Somebody who showed an admin token. `form_key` goes into each form, and comes back from our own pages only."""

    subject: str
    role: str
    provider: str
    key: str  # of the provider
    expires: int  # Unix seconds
    form_key: str = ""


class PageSessions:
    """Safe for many threads, equal in all processes with the same store keys."""

    def __init__(self, keys: SessionKeys, *, lifetime: int, now: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._lifetime = lifetime
        self._now = now

    def begin(self, subject: str, role: str, provider: str, key: str) -> str:
        """The `Set-Cookie` of a new session."""
        end = int(self._now()) + self._lifetime
        members = {"subject": subject, "role": role, "provider": provider, "key": key, "expires": end}
        nonce = os.urandom(aead.NONCE_SIZE)
        sealed = aead.Aead(self._keys.all()[0].page).encrypt(nonce, json.dumps(members).encode(), _AAD)
        return f"{COOKIE}={base64url.encode(nonce + sealed)}; Path=/; Max-Age={self._lifetime}; Secure; HttpOnly; SameSite=Strict"

    @staticmethod
    def end() -> str:
        """The `Set-Cookie` that takes the cookie away."""
        return f"{COOKIE}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict"

    def read(self, cookie: str) -> PageSession:
        """Raises `PeerError("unauthenticated")` for a cookie that is not ours or has expired."""
        keys, members = self._open(cookie)
        if members["expires"] <= self._now():
            raise PeerError("unauthenticated", "the page's session has expired")
        form_key = hmac.new(keys.form.reveal(), cookie.encode(), hashlib.sha256).hexdigest()
        return PageSession(**members, form_key=form_key)

    def _open(self, cookie: str) -> tuple[Derived, dict[str, Any]]:
        try:
            raw = base64url.decode(cookie, "the page's cookie") if len(cookie) <= _LONGEST else b""
        except PeerError:
            raw = b""
        nonce, sealed = raw[: aead.NONCE_SIZE], raw[aead.NONCE_SIZE :]
        for keys in self._keys.all() if raw else ():
            try:
                return keys, json.loads(aead.Aead(keys.page).decrypt(nonce, sealed, _AAD))
            except PeerError:
                continue
        raise PeerError("unauthenticated", "the page's cookie is not of this KBS")

    @staticmethod
    def check_form(session: PageSession, given: str | None) -> None:
        """Raises `PeerError("forbidden")` for a form that another site, or another session, has sent."""
        if given is None or not hmac.compare_digest(given.encode(), session.form_key.encode()):
            raise PeerError("forbidden", "this form is not of this session's page", "Load the page again.")
