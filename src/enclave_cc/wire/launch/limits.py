"""POSIX resource limits (getrlimit(2)), as an OCI specification writes them."""

from __future__ import annotations

from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.launch.members import Members

UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY


@record
class Rlimit:
    """`name` is as in getrlimit(2): RLIMIT_NOFILE; 2**64-1 is no limit."""

    name: str
    soft: int
    hard: int

    def __post_init__(self) -> None:
        if not self.name.startswith("RLIMIT_") or not self.name.isascii() or not self.name.isupper():
            raise PeerError("malformed", "a resource limit's name does not start with RLIMIT_")
        if not 0 <= self.soft <= self.hard <= UNLIMITED:
            raise PeerError("malformed", "a resource limit is out of range")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "soft": self.soft, "hard": self.hard}

    @classmethod
    def from_json(cls, members: Members) -> Rlimit:
        """Raises `PeerError("malformed")`."""
        limit = cls(members.text("name"), members.number("soft", 0, UNLIMITED), members.number("hard", 0, UNLIMITED))
        members.end()
        return limit


def check_limits(limits: tuple[Rlimit, ...]) -> None:
    """Raises `PeerError("malformed")` when one is there twice."""
    if len({limit.name for limit in limits}) != len(limits):
        raise PeerError("malformed", "a resource limit is there twice")
