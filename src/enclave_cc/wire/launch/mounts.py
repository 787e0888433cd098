"""What is mounted into a container besides its root: host volumes, file systems in memory and generated files."""

from __future__ import annotations

from typing import Any

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.launch.members import Members

# Files that the host generates, and where they go.
GENERATED_FILES = {"resolv.conf": "/etc/resolv.conf", "hosts": "/etc/hosts", "hostname": "/etc/hostname"}
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
# Kernel interfaces of the container: nothing of the host's may cover them.
_RESERVED = ("/proc", "/sys", "/dev")
# Where a workload of Kubernetes may leave a last word: what it writes there is its own choice.
TERMINATION_LOG = "/dev/termination-log"
# Kubernetes shares it between the containers of a pod. Between enclaves it is the host's tmpfs.
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a place inside the container
_DEVICE_EXCEPTIONS = (SHARED_MEMORY, TERMINATION_LOG)
# What a container sees of the kernel is hidden, or read-only, at these places at least.
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_KERNEL = ("proc", "sys")
_PROCESSES = frozenset({"self", "thread-self"})  # and numbers: from a process' directory links lead to the image's files
_SIZE_LIMIT = 1 << 50


@record
class Volume:
    """A host directory or file: entry `name` of the volumes directory, mounted at `destination`.

    Raises `PeerError("malformed")` for a name that is no plain file name or a place that is not an absolute path in
    its shortest form, or is one that no host file may cover.
    """

    name: str
    destination: str
    read_only: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= 64 or self.name.startswith(".") or not set(self.name) <= _NAME_CHARACTERS:
            raise PeerError("malformed", f"{foreign(self.name)!r} is not a volume name")
        check_path(self.destination, "a volume's destination")
        if is_reserved(self.destination):
            raise PeerError("malformed", f"no volume may cover {foreign(self.destination)}")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "destination": self.destination, "read_only": self.read_only}

    @classmethod
    def from_json(cls, members: Members) -> Volume:
        """Raises `PeerError("malformed")`."""
        volume = cls(members.text("name"), members.text("destination"), members.flag("read_only", False))
        members.end()
        return volume


@record
class Tmpfs:
    """A file system in the enclave's memory at `destination`: `size` in bytes, 0 for half of the machine's; `mode` of its root.

    Raises `PeerError("malformed")` as `Volume` does.
    """

    destination: str
    size: int = 0
    mode: int = 0o1777
    executable: bool = True

    def __post_init__(self) -> None:
        check_path(self.destination, "a file system's destination")
        if is_reserved(self.destination):
            raise PeerError("malformed", f"no file system may cover {foreign(self.destination)}")
        if not 0 <= self.size <= _SIZE_LIMIT or not 0 <= self.mode <= 0o7777:
            raise PeerError("malformed", "a file system's size or mode is out of range")

    def to_json(self) -> dict[str, Any]:
        return {"destination": self.destination, "size": self.size, "mode": self.mode, "executable": self.executable}

    @classmethod
    def from_json(cls, members: Members) -> Tmpfs:
        """Raises `PeerError("malformed")`."""
        tmpfs = cls(
            members.text("destination"),
            members.number("size", 0, _SIZE_LIMIT, 0),
            members.number("mode", 0, 0o7777, 0o1777),
            members.flag("executable", True),
        )
        members.end()
        return tmpfs


def is_reserved(path: str) -> bool:
    """Whether an absolute path in its shortest form is one that no host file may cover."""
    reserved = any(path == root or path.startswith(root + "/") for root in _RESERVED)
    return path == "/" or (reserved and path not in _DEVICE_EXCEPTIONS)


def check_path(path: str, what: str) -> str:
    """`path`, absolute and without empty, `.` or `..` parts. Raises `PeerError("malformed")`."""
    parts = path.split("/")[1:]
    if not path.startswith("/") or len(path) > 4096 or "\0" in path or (path != "/" and any(p in ("", ".", "..") for p in parts)):
        raise PeerError("malformed", f"{what} is {foreign(path)!r}, not a plain absolute path")
    return path


def shorten_path(path: str) -> str:
    """A path as somebody wrote it, in its shortest form; a relative one is taken from the root, as docker does."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def check_volumes(volumes: tuple[Volume, ...], tmpfs: tuple[Tmpfs, ...] = ()) -> None:
    """Raises `PeerError("malformed")` when two share a name or a place."""
    places = [*(volume.destination for volume in volumes), *(place.destination for place in tmpfs)]
    if len({v.name for v in volumes}) != len(volumes) or len(set(places)) != len(places):
        raise PeerError("malformed", "two volumes have one name or one destination")


def check_kernel_paths(paths: tuple[str, ...]) -> None:
    """Raises `PeerError("malformed")` for a place that is not the kernel's to show: what the image holds is not to be hidden."""
    for path in paths:
        top, *rest = check_path(path, "a path to hide or to seal").split("/")[1:]
        if top not in _KERNEL or not rest or (top == "proc" and (rest[0] in _PROCESSES or rest[0].isdigit())):
            raise PeerError("malformed", f"{foreign(path)} is no place of the kernel's below /proc or /sys: it stays as it is")


def check_files(files: tuple[str, ...]) -> None:
    """Raises `PeerError("malformed")` for a file that is not one of the generated ones, or named twice."""
    for name in files:
        if name not in GENERATED_FILES:
            raise PeerError("malformed", f"there is no generated file {foreign(name)!r}")
    if len(set(files)) != len(files):
        raise PeerError("malformed", "a generated file is named twice")
