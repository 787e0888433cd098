"""A specification's mounts, sorted: volumes, empty file systems, generated files, and what boot init makes itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from enclave_cc.errors import PeerError, foreign
from enclave_cc.host.sandbox.spec import Volume
from enclave_cc.host.shim.refusals import check_mount
from enclave_cc.record import record
from enclave_cc.wire.launch import mounts

# Boot init makes these itself, as every runtime does by default.
_OWN_PLACES = frozenset({"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup", "/run"})  # noqa: S108
_GENERATED = {place: name for name, place in mounts.GENERATED_FILES.items()}
_SIZE = re.compile(r"(\d{1,16})([kmg]?)")
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
# Every file system of an enclave's is so, or it makes no difference to one in memory.
_GIVEN = frozenset(
    {"nosuid", "nodev", "rw", "exec", "relatime", "noatime", "strictatime", "nodiratime", "norelatime", "private", "rprivate"}
)
_NO_EXECUTION = "noexec"


@record
class MountTable:
    """`volumes`: the host's side; `places`: the enclave's side of the same; `generated`: files by name."""

    volumes: tuple[Volume, ...]
    places: tuple[mounts.Volume, ...]
    tmpfs: tuple[mounts.Tmpfs, ...]
    generated: Mapping[str, Path]


def sort_mounts(listed: Iterable[Mapping[str, Any]]) -> MountTable:
    """The later of two at one place covers the earlier. Raises `PeerError`."""
    sources: list[Volume] = []
    covers: dict[str, mounts.Volume | mounts.Tmpfs] = {}
    generated: dict[str, Path] = {}
    for mount in listed:
        destination, source = mounts.shorten_path(str(mount["destination"])), str(mount.get("source") or "")
        kind, options = mount.get("type"), tuple(map(str, mount.get("options") or ()))
        is_bind = kind == "bind" or bool({"bind", "rbind"} & set(options))
        if destination in _OWN_PLACES and not is_bind:
            continue
        check_mount(mount)
        if destination in _GENERATED:
            generated[_GENERATED[destination]] = Path(source)
        elif is_bind:
            name = f"v{len(sources)}"
            read_only = bool({"ro", "rro"} & set(options))
            sources.append(Volume(name, Path(source), read_only))
            covers[destination] = mounts.Volume(name, destination, read_only)
        elif kind == "tmpfs":
            covers[destination] = _read_tmpfs(destination, options)
        else:
            raise PeerError("launch-failed", f"a mount of type {foreign(kind)!r} at {foreign(destination)} is not supported")
    places = tuple(place for place in covers.values() if isinstance(place, mounts.Volume))
    wanted = {place.name for place in places}
    tmpfs = tuple(place for place in covers.values() if isinstance(place, mounts.Tmpfs))
    return MountTable(tuple(v for v in sources if v.name in wanted), places, tmpfs, generated)


def _read_tmpfs(destination: str, options: Sequence[str]) -> mounts.Tmpfs:
    """Raises `PeerError("launch-failed")` for an option that a file system in the enclave's memory does not have."""
    size, mode = 0, 0o1777
    for option in options:
        name, _, value = option.partition("=")
        number = _SIZE.fullmatch(value.lower())
        if name == "size" and number is not None:
            size = int(number[1]) * _FACTORS[number[2]]
        elif name == "mode" and value and set(value) <= set("01234567"):
            mode = int(value, 8)
        elif option not in _GIVEN and option != _NO_EXECUTION:
            raise PeerError(
                "launch-failed", f"the option {foreign(option)} of the tmpfs at {foreign(destination)} is not supported"
            )
    return mounts.Tmpfs(destination, size, mode, executable=_NO_EXECUTION not in options)
