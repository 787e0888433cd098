"""What is mounted into a container besides its root: host volumes and generated files."""

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
# Kubernetes shares it between the containers of a pod. Between enclaves it is the host's memory.
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a place inside the container
_DEVICE_EXCEPTIONS = (SHARED_MEMORY, TERMINATION_LOG)


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


def check_volumes(volumes: tuple[Volume, ...]) -> None:
    """Raises `PeerError("malformed")` when two share a name or a place."""
    if len({v.name for v in volumes}) != len(volumes) or len({v.destination for v in volumes}) != len(volumes):
        raise PeerError("malformed", "two volumes have one name or one destination")


def check_files(files: tuple[str, ...]) -> None:
    """Raises `PeerError("malformed")` for a file that is not one of the generated ones, or named twice."""
    for name in files:
        if name not in GENERATED_FILES:
            raise PeerError("malformed", f"there is no generated file {foreign(name)!r}")
    if len(set(files)) != len(files):
        raise PeerError("malformed", "a generated file is named twice")
