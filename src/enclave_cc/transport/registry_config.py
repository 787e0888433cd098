"""How registries are reached: which are insecure, whose CAs are trusted, which mirrors stand in for which.

The subset of containers-registries.conf(5) that image-rs reads, as values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from enclave_cc.record import field, record
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci.auth import Credentials
from enclave_cc.wire.oci.reference import Reference


@record
class RegistryConfig:
    """`insecure` and the keys of `mirrors` are `HOST[:PORT]`; a mirror is `HOST[:PORT][/PREFIX]`, tried in order first."""

    insecure: frozenset[str] = frozenset()
    ca_pem: str | None = None
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    concurrency: int = 3  # layers pulled at once; image-rs's default
    deadline: float = 30.0  # seconds per request, and per wait for a blob's next bytes

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 64:
            raise ValueError("concurrency must be 1 to 64")

    def locations(self, image: Reference) -> list[Reference]:
        """Where to look for `image`: its mirrors, then its own registry."""
        found = []
        for mirror in self.mirrors.get(image.registry, ()):
            host, slash, prefix = mirror.partition("/")
            found.append(Reference(host, prefix + slash + image.repository, image.tag, image.digest))
        return [*found, image]

    def connect(
        self, host: str, credentials: Credentials | Callable[[], Credentials | None] | None, *, own_cas: bool = True
    ) -> Registry:
        """A client of `host` under this configuration; without `own_cas` the system's CAs alone decide."""
        ca_pem = self.ca_pem if own_cas else None
        return Registry(host, insecure=host in self.insecure, credentials=credentials, ca_pem=ca_pem, deadline=self.deadline)
