"""The command line with which containerd calls a shim: Go's flags, then a verb. No dataclass: that is 20 ms of `start`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAGS = {"namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket"}
_SWITCHES = {"debug", "v", "version", "info"}


class Arguments:
    """`verb`: start, delete, or empty. `address` is containerd's own."""

    __slots__ = ("address", "bundle", "id", "namespace", "switches", "verb")

    def __init__(
        self,
        verb: str = "",
        namespace: str = "",
        address: str = "",
        id: str = "",
        bundle: str = "",
        switches: frozenset[str] = frozenset(),
    ) -> None:
        self.verb, self.namespace, self.address = verb, namespace, address
        self.id, self.bundle, self.switches = id, bundle, switches


def parse(argv: Sequence[str]) -> Arguments:
    """Raises `ValueError`, which says what is wrong."""
    values: dict[str, str] = {}
    switches, words = set(), list(argv)
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).lstrip("-").partition("=")
        if name in _SWITCHES:
            switches.add(name)
        elif name not in _FLAGS:
            raise ValueError(f"there is no flag -{name}")
        elif equals:
            values[name] = value
        elif words:
            values[name] = words.pop(0)
        else:
            raise ValueError(f"-{name} needs a value")
    return Arguments(
        verb=words[0] if words else "",
        namespace=values.get("namespace", ""),
        address=values.get("address", ""),
        id=values.get("id", ""),
        bundle=values.get("bundle", ""),
        switches=frozenset(switches),
    )
