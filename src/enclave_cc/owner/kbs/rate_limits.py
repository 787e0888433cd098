"""Token buckets: how often somebody may ask. For one event loop, not for threads."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from enclave_cc.owner.kbs.settings import Section
from enclave_cc.record import field, record

KEPT = 100_000  # buckets; whose has been full longest is forgotten


@record
class Rate:
    """`per_second` in the long run, `burst` at once. A rate of 0 is no limit."""

    per_second: float
    burst: float

    @classmethod
    def read(cls, section: Section, name: str, default: Rate) -> Rate:
        """`NAME_rate` and `NAME_burst`. Raises `UsageError("bad-config")`."""
        per_second = section.number(f"{name}_rate", default.per_second, high=1e9)
        burst = section.number(f"{name}_burst", default.burst, low=1, high=1e9)
        return cls(per_second, burst)


@record
class RateLimits:
    """Of one process. `address`: all requests of a client address; `refusals`: those that were refused, likewise;
    `admin`: of one administrator. `waiting`: handshakes in the queue; `buffered`: bytes of bodies of all who have not
    shown a token."""

    address: Rate = field(default_factory=lambda: Rate(2000, 4000))
    refusals: Rate = field(default_factory=lambda: Rate(100, 1000))
    admin: Rate = field(default_factory=lambda: Rate(200, 1000))
    waiting: int = 512
    buffered: int = 128 << 20

    @classmethod
    def read(cls, section: Section) -> RateLimits:
        """`[limits]` of kbs.toml. Raises `UsageError("bad-config")`."""
        default = cls()
        made = cls(
            address=Rate.read(section, "address", default.address),
            refusals=Rate.read(section, "refusal", default.refusals),
            admin=Rate.read(section, "admin", default.admin),
            waiting=int(section.number("waiting", default.waiting, low=1)),
            buffered=int(section.number("buffered", default.buffered, low=1 << 20)),
        )
        section.finish()
        return made


class Buckets:
    """A bucket for each key, full at first."""

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # key -> (level, when)

    def wait(self, key: Hashable) -> float:
        """Seconds until the bucket of `key` holds a whole unit again; 0 if it does."""
        if not self._rate.per_second:
            return 0.0
        return max(0.0, (1.0 - self._level(key)) / self._rate.per_second)

    def take(self, key: Hashable) -> float:
        """Takes a unit, if there is one; else seconds until there is."""
        if not self._rate.per_second:
            return 0.0
        level = self._level(key)
        if level < 1.0:
            return (1.0 - level) / self._rate.per_second
        self._levels[key] = (level - 1.0, self._clock())
        self._levels.move_to_end(key)
        if len(self._levels) > KEPT:
            self._levels.popitem(last=False)
        return 0.0

    def _level(self, key: Hashable) -> float:
        known = self._levels.get(key)
        if known is None:
            return self._rate.burst
        level, since = known
        return min(self._rate.burst, level + (self._clock() - since) * self._rate.per_second)


def name_client(address: str) -> str:
    """Whom an address stands for: an IPv6 client has a whole /64 to choose from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return address
