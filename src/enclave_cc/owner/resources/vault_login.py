"""How a KBS gets its Vault token, and keeps it alive.

A token from a file or the environment is renewed where Vault says that it can be, and read again once it is refused
(Vault Agent writes a new one there). An AppRole logs in, renews at half of the lease, and logs in again when renewal
no longer helps. Role, secret id and token are read when they are needed, and never kept in a message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.resources.origin import Origin
from enclave_cc.owner.resources.vault_client import VaultClient, take
from enclave_cc.record import record

_FOREVER = float("inf")
_AGAIN = 5.0  # seconds until the next try, when a renewal failed and the token still lives


@record
class Lease:
    token: Secret
    seconds: float
    renewable: bool


class Credentials(Protocol):
    """Makes tokens. `obtain` raises `EnvironmentFault("store-denied")` when Vault does not take the credentials."""

    def obtain(self, client: VaultClient, end: float) -> Lease: ...


@record
class GivenToken:
    """A token that somebody else made."""

    origin: Origin

    def obtain(self, client: VaultClient, end: float) -> Lease:
        token = self.origin.read()
        answer = client.send("GET", "auth/token/lookup-self", end=end, token=token)
        if answer.status == 403 and answer.complains_of("permission denied"):
            # Dead, or its policy does not let it look at itself: the first use tells.
            return Lease(token, _FOREVER, renewable=False)
        if answer.status != 200:
            raise EnvironmentFault("store-denied", "Vault does not take the token")
        return _make_lease(token, take(answer.data, "ttl", int), answer.data.get("renewable"))


@record
class AppRole:
    """Role id and secret id, at the auth method mounted at `mount`."""

    role_id: Origin
    secret_id: Origin
    mount: str = "approle"

    def obtain(self, client: VaultClient, end: float) -> Lease:
        body = {"role_id": self.role_id.read().reveal().decode(), "secret_id": self.secret_id.read().reveal().decode()}
        answer = client.send("POST", f"auth/{self.mount}/login", body, end=end)
        if answer.status != 200:
            raise EnvironmentFault("store-denied", f"Vault does not take the role and secret id at auth/{self.mount}")
        return _parse_lease(take(answer.document, "auth", dict))


class Login:
    """The token of one client. Safe for many threads: one logs in or renews, the others wait for it."""

    def __init__(self, credentials: Credentials, *, now: Callable[[], float] = time.monotonic) -> None:
        self._credentials = credentials
        self._now = now
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._expires = self._renew_at = 0.0

    def token(self, client: VaultClient, end: float) -> Secret:
        """The present token. `end`: monotonic seconds."""
        with self._lock:
            if self._lease is None or self._now() >= self._expires:
                self._use(self._credentials.obtain(client, end))
            elif self._now() >= self._renew_at:
                self._renew(self._lease, client, end)
            return self._lease.token  # type: ignore[union-attr]  # set by `_use`

    def replace(self, refused: Secret, client: VaultClient, end: float) -> bool:
        """After a 403: whether there is another token now. A token that still lives was refused for what it asked."""
        with self._lock:
            if self._lease is None or self._lease.token != refused:
                return True
            if client.send("GET", "auth/token/lookup-self", end=end, token=refused).status == 200:
                return False
            self._use(self._credentials.obtain(client, end))
            return self._lease.token != refused

    def _renew(self, lease: Lease, client: VaultClient, end: float) -> None:
        try:
            answer = client.send("POST", "auth/token/renew-self", {}, end=end, token=lease.token)
            renewed = _parse_lease(take(answer.document, "auth", dict)) if answer.status == 200 else None
        except EnvironmentFault:
            self._renew_at = min(self._now() + _AGAIN, self._expires)
            return
        # A lease that comes back shorter is near its end for good.
        if renewed is not None and renewed.seconds >= lease.seconds * 0.75:
            self._use(renewed)
        else:
            self._use(self._credentials.obtain(client, end))

    def _use(self, lease: Lease) -> None:
        self._lease = lease
        self._expires = self._now() + lease.seconds
        self._renew_at = self._now() + lease.seconds / 2 if lease.renewable else _FOREVER


def _parse_lease(auth: Any) -> Lease:
    token = take(auth, "client_token", str)
    if not token.isascii() or not token.isprintable() or not token:
        raise EnvironmentFault("store-failed", "Vault gave a token that is none")
    return _make_lease(Secret(token.encode()), take(auth, "lease_duration", int), auth.get("renewable"))


def _make_lease(token: Secret, seconds: int, renewable: object) -> Lease:
    """0 seconds: a token without an end."""
    if not 0 <= seconds < 1 << 40:
        raise EnvironmentFault("store-failed", "Vault gave a lease that is none")
    return Lease(token, seconds or _FOREVER, seconds > 0 and renewable is True)
