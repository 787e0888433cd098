"""What the workload finds around its image: /proc, /sys, /dev, volumes, generated files, masks (as runc's default spec).

Runs in the workload's own mount namespace, as PID 1 of its PID namespace. What comes from outside the rootfs is
captured first: mounts as detached copies, files as bytes. Then the root is pivoted and the old root detached, and all
that follows resolves inside the image's own tree, where no symlink leads back.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from enclave_cc.enclave.boot import syscalls
from enclave_cc.errors import EnvironmentFault, PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.launch import mounts
from enclave_cc.wire.launch.mounts import GENERATED_FILES, MASKED, READ_ONLY, Tmpfs, Volume

VOLUME_DIRECTORY = "/run/enclave-cc/volumes"
FILE_DIRECTORY = "/run/enclave-cc/files"
CGROUP_DIRECTORY = "/sys/fs/cgroup"
FILE_LIMIT = 1 << 20
SHM_SIZE = "65536k"
TTY_GROUP = 5

_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore", "ptmx": "pts/ptmx",
}  # fmt: skip
_NO_ESCALATION = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_NAMED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # what has the name, be it a link
_DATA_ONLY = _NO_ESCALATION | syscalls.MOUNT_ATTR_NOEXEC


@record
class View:
    """What to build around the rootfs: host volumes, empty file systems in memory, generated files, and places that stay
    writable in a read-only root. `masked` and `sealed` come on top of what is hidden or read-only anyway.
    """

    volumes: tuple[Volume, ...] = ()
    files: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    read_only_root: bool = False
    tmpfs: tuple[Tmpfs, ...] = ()
    masked: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()


@record
class Captured:
    """What was taken along from outside: detached mounts (descriptors) and file contents."""

    volumes: tuple[tuple[Volume, int], ...]
    files: Mapping[str, bytes]
    cgroup: int | None


def capture(view: View) -> Captured:
    """Takes along what `view` needs from outside the rootfs. Raises `EnvironmentFault("mount-failed")`."""
    volumes: list[tuple[Volume, int]] = []
    for volume in view.volumes:
        path = f"{VOLUME_DIRECTORY}/{volume.name}"
        try:
            # The host bound its directory here; a symlink in this place would be followed inside boot's own root.
            fd = syscalls.clone_mount(path, recursive=True, follow=False)
            attributes = _NO_ESCALATION | (syscalls.MOUNT_ATTR_RDONLY if volume.read_only else 0)
            syscalls.set_mount_attributes(fd, attributes, recursive=True)
        except OSError as error:
            raise EnvironmentFault("mount-failed", f"volume {foreign(volume.name)!r}: {error.strerror}") from error
        volumes.append((volume, fd))
    files: dict[str, bytes] = {}
    # Generated files are host-authored. They are copied, not bound: what the workload writes to them stays in the enclave.
    for name in view.files:
        content = _read_generated(f"{FILE_DIRECTORY}/{name}")
        if content is not None:
            files[name] = content
    cgroup = None
    if os.path.ismount(CGROUP_DIRECTORY):
        try:
            cgroup = syscalls.clone_mount(CGROUP_DIRECTORY, recursive=True)
            syscalls.set_mount_attributes(cgroup, _DATA_ONLY | syscalls.MOUNT_ATTR_RDONLY, recursive=True)
        except OSError as error:
            raise EnvironmentFault("mount-failed", f"the cgroup view: {error.strerror}") from error
    return Captured(tuple(volumes), files, cgroup)


def enter_root(root: str) -> None:
    """Makes the mount at `root` the root of this mount namespace and lets go of everything else in it."""
    try:
        os.chdir(root)
        syscalls.pivot_root(".", ".")  # pivot_root(2), NOTES: the old root is now stacked below "."
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
    except OSError as error:
        raise EnvironmentFault("mount-failed", f"cannot enter the rootfs: {error.strerror}") from error


def furnish(view: View, captured: Captured) -> None:
    """Builds the surroundings inside the entered root. Raises `EnvironmentFault("mount-failed")` or `PeerError`."""
    os.umask(0o022)
    try:
        _furnish(view, captured)
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        raise EnvironmentFault("mount-failed", f"{about}{error.strerror}") from error


def make_directory(path: str) -> None:
    """`mkdir -p`, mode 0755, owned by root. Raises `OSError`."""
    os.makedirs(path, mode=0o755, exist_ok=True)


def _furnish(view: View, captured: Captured) -> None:
    # First, while a link of the image's leads to nothing but the image: not into /proc/sysrq-trigger.
    for name, content in captured.files.items():
        _write_generated(GENERATED_FILES[name], content)
    _mount_kernel("proc", "/proc", [("source", "proc")], _DATA_ONLY)
    _mount_kernel("sysfs", "/sys", [("source", "sysfs")], _DATA_ONLY | syscalls.MOUNT_ATTR_RDONLY)
    if captured.cgroup is not None:
        _attach(captured.cgroup, CGROUP_DIRECTORY)
    _furnish_devices()
    for path in (*MASKED, *view.masked):
        _mask(path)
    for path in (*READ_ONLY, *view.sealed):
        _seal_read_only(path)
    if view.read_only_root:
        for place in view.scratch:
            _keep_writable(place)
    # Only now comes the host's: every path above, and every symbolic link in a volume's place, was the image's.
    _attach_volumes([*captured.volumes, *((place, _create_memory(place)) for place in view.tmpfs)])
    if view.read_only_root:
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        syscalls.set_mount_attributes(root, syscalls.MOUNT_ATTR_RDONLY)
        os.close(root)


def _mount_kernel(kind: str, path: str, options: Sequence[tuple[str, str | None]], attributes: int) -> None:
    """A kernel file system at a top-level directory, which must be one: a symlink there would put /proc elsewhere."""
    try:
        about = os.lstat(path)
    except FileNotFoundError:
        os.mkdir(path, 0o755)
    else:
        if not stat.S_ISDIR(about.st_mode):
            raise PeerError("launch-failed", f"{path} of the image is not a directory")
    fd = syscalls.create_filesystem(kind, options, attributes)
    _attach(fd, path)


def _furnish_devices() -> None:
    options = [("source", "tmpfs"), ("mode", "755"), ("size", SHM_SIZE)]
    # Not noexec: some programs map /dev/zero executable.
    _mount_kernel("tmpfs", "/dev", options, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_STRICTATIME)
    mask = os.umask(0)
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for name, target in _LINKS.items():
        os.symlink(target, f"/dev/{name}")
    pts = [("source", "devpts"), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", str(TTY_GROUP))]
    _mount_kernel("devpts", "/dev/pts", pts, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC)
    os.umask(mask)
    os.mkdir("/dev/shm")  # noqa: S108  (we make it)
    _attach(create_tmpfs([("source", "shm"), ("mode", "1777"), ("size", SHM_SIZE)], _DATA_ONLY)[0], "/dev/shm")  # noqa: S108
    _mount_kernel("mqueue", "/dev/mqueue", [("source", "mqueue")], _DATA_ONLY)


def create_tmpfs(options: Sequence[tuple[str, str | None]], attributes: int) -> tuple[int, bool]:
    """A tmpfs that never goes to swap, where the kernel (6.4) can; its mount descriptor, and whether it is so."""
    try:
        return syscalls.create_filesystem("tmpfs", [*options, ("noswap", None)], attributes), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return syscalls.create_filesystem("tmpfs", options, attributes), False


def _create_memory(place: Tmpfs) -> int:
    options = [("source", "tmpfs"), ("mode", f"{place.mode:o}")]
    if place.size:
        options.append(("size", str(place.size)))
    return create_tmpfs(options, _NO_ESCALATION if place.executable else _DATA_ONLY)[0]


def _attach(mount_fd: int, path: str) -> None:
    try:
        syscalls.attach_mount(mount_fd, path)
    finally:
        os.close(mount_fd)


def _attach_volumes(volumes: Sequence[tuple[Volume | Tmpfs, int]]) -> None:
    """Each in its place, the outer ones first: a place inside another volume is the host's ground, and may change."""
    placed = [(os.path.realpath(volume.destination), volume, fd) for volume, fd in volumes]  # the image's links
    for path, volume, fd in sorted(placed, key=lambda item: item[0].count("/")):
        if mounts.is_reserved(path):
            raise PeerError("launch-failed", f"a volume cannot be at {foreign(volume.destination)!r}")
        place = _open_place(path, directory=stat.S_ISDIR(os.fstat(fd).st_mode))
        try:
            syscalls.attach_mount(fd, place)
        finally:
            os.close(place)
            os.close(fd)


def _open_place(path: str, *, directory: bool) -> int:
    """A descriptor of `path`, made if missing. Follows no link, so that a volume cannot send another over the image."""
    *parents, name = path.strip("/").split("/")
    here = os.open("/", _NAMED)
    for part, is_directory in (*((part, True) for part in parents), (name, directory)):
        try:
            try:
                there = os.open(part, _NAMED, dir_fd=here)
            except FileNotFoundError:
                if is_directory:
                    os.mkdir(part, 0o755, dir_fd=here)
                else:
                    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=here))
                there = os.open(part, _NAMED, dir_fd=here)
        finally:
            os.close(here)
        here = there
        if stat.S_ISLNK(os.fstat(here).st_mode):
            os.close(here)
            raise PeerError("launch-failed", f"a volume's place {foreign(path)!r} is a symbolic link in another volume")
    return here


def _keep_writable(place: str) -> None:
    """A mount of its own for a directory of the root, which the root's read-only flag then does not reach."""
    path = os.path.realpath(place)
    if mounts.is_reserved(path):
        return  # the kernel's file systems are as they are: images for systemd name /sys/fs/cgroup
    make_directory(path)
    if not os.path.ismount(path):
        _attach(syscalls.clone_mount(path), path)


def _mask(path: str) -> None:
    try:
        is_directory = os.path.isdir(path)
        if is_directory:
            fd = syscalls.create_filesystem(
                "tmpfs", [("source", "tmpfs"), ("mode", "755")], _DATA_ONLY | syscalls.MOUNT_ATTR_RDONLY
            )
        else:
            fd = syscalls.clone_mount("/dev/null")
        _attach(fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return  # this kernel has none


def _seal_read_only(path: str) -> None:
    try:
        fd = syscalls.clone_mount(path, recursive=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    syscalls.set_mount_attributes(fd, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
    _attach(fd, path)


def _read_generated(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnvironmentFault("mount-failed", f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise EnvironmentFault("mount-failed", f"{path} is not a file")
        content = b""
        while len(content) <= FILE_LIMIT and (chunk := os.read(fd, 1 << 16)):
            content += chunk
    finally:
        os.close(fd)
    if len(content) > FILE_LIMIT:
        raise EnvironmentFault("mount-failed", f"{path} is larger than {FILE_LIMIT} bytes")
    return content


def _write_generated(path: str, content: bytes) -> None:
    path = os.path.realpath(path)  # often a symlink to /run, which may dangle
    make_directory(os.path.dirname(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
