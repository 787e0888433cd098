"""Linux calls that Python 3.11 does not offer: the mount API of Linux 5.2, namespaces, capabilities, prctl.

Each raises `OSError` as the calls in `os` do, with the call's name and object in it; the callers know which coded error
that is. Numbers are those of include/uapi of Linux 6.12; `pivot_root` is the only one that differs by machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence

# include/uapi/linux/mount.h
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_STRICTATIME = 0x20
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1

# include/uapi/linux/sched.h
CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWPID = 0x20000000

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2

# include/uapi/asm-generic/ioctls.h
TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _CLOSE_RANGE, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 436, 442
_CLOSE_RANGE_CLOEXEC = 4
_CAPABILITY_VERSION_3 = 0x20080522

MACHINE = os.uname().machine
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _check(result: int, call: str, about: object = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", str(about) or None)
    return result


def _invoke(number: int, *arguments: object) -> int:
    # Every argument of a raw syscall is a register wide; ctypes would pass an int as 32 bits.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *wide))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare", hex(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2); `fd` is a namespace file or a pidfd."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), "setns", hex(flags))


def prctl(option: int, *arguments: int) -> int:
    """prctl(2) with integer arguments."""
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(ctypes.c_int(option), *padded), "prctl", option)


def make_private(path: str) -> None:
    """Stops every mount at and below `path` from propagating to or from other namespaces."""
    _check(_libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "mount", path)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2)."""
    encoded = [os.fsencode(text) for text in (source, target, kind, options)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), "mount", target)


def umount(path: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(path), ctypes.c_int(flags)), "umount2", path)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check(_invoke(_PIVOT_ROOT[MACHINE], os.fsencode(new_root), os.fsencode(put_old)), "pivot_root", new_root)


def create_filesystem(kind: str, options: Sequence[tuple[str, str | None]], attributes: int = 0) -> int:
    """A new file system of `kind` as a detached mount; its descriptor. An option with `None` is a flag.

    The kernel's own words (the log of the fs context) are in the `OSError`.
    """
    context = _check(_invoke(_FSOPEN, os.fsencode(kind), _FSOPEN_CLOEXEC), "fsopen", kind)
    try:
        for name, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else os.fsencode(value)
            _check_context(_invoke(_FSCONFIG, context, command, os.fsencode(name), text, 0), context, f"{kind} option {name}")
        _check_context(_invoke(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), context, kind)
        return _check_context(_invoke(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), context, kind)
    finally:
        os.close(context)


def _check_context(result: int, context: int, about: str) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    words: list[str] = []
    with contextlib.suppress(OSError):  # ENODATA ends the log
        while len(words) < 8:
            words.append(os.read(context, 4096).decode("utf-8", "replace").strip())
    raise OSError(number, "; ".join([os.strerror(number), *words]), about)


def clone_mount(path: str, *, recursive: bool = False, follow: bool = True) -> int:
    """A detached copy of the mount at `path` (a bind mount that is nowhere yet); its descriptor."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if follow else AT_SYMLINK_NOFOLLOW)
    return _check(_invoke(_OPEN_TREE, -100, os.fsencode(path), flags), "open_tree", path)


def attach_mount(mount_fd: int, target: str | int) -> None:
    """Puts a detached mount at `target`: a path of which the last part is not followed, or a descriptor."""
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        result = _invoke(_MOVE_MOUNT, mount_fd, b"", target, b"", flags)
    else:
        result = _invoke(_MOVE_MOUNT, mount_fd, b"", -100, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
    _check(result, "move_mount", target)


def set_mount_attributes(mount_fd: int, attributes: int, *, recursive: bool = False) -> None:
    """Adds `MOUNT_ATTR_*` to a mount, attached or not."""
    wanted = _MountAttributes(set=attributes)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _invoke(_MOUNT_SETATTR, mount_fd, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _check(result, "mount_setattr")


def close_on_exec_from(lowest: int) -> None:
    """Marks every descriptor from `lowest` up close-on-exec."""
    _check(_invoke(_CLOSE_RANGE, lowest, 0x7FFFFFFF, _CLOSE_RANGE_CLOEXEC), "close_range", lowest)


def close_all_but(kept: Sequence[int]) -> None:
    """Closes every descriptor that is not in `kept`."""
    lowest = 0
    for fd in [*sorted(set(kept)), 0x7FFFFFFF]:
        if fd > lowest:
            _check(_invoke(_CLOSE_RANGE, lowest, fd - 1, 0), "close_range", lowest)
        lowest = fd + 1


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this thread; the sets are bit masks."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    halves = (_CapabilitySets * 2)()
    for index in (0, 1):
        shift = 32 * index
        halves[index] = _CapabilitySets(
            (effective >> shift) & 0xFFFFFFFF, (permitted >> shift) & 0xFFFFFFFF, (inheritable >> shift) & 0xFFFFFFFF
        )
    _check(_libc.capset(ctypes.byref(header), halves), "capset")


def get_permitted_capabilities() -> int:
    """The permitted set of this thread as a bit mask."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    halves = (_CapabilitySets * 2)()
    _check(_libc.capget(ctypes.byref(header), halves), "capget")
    return int(halves[0].permitted) | int(halves[1].permitted) << 32


def join_new_session_keyring() -> None:
    """Leaves the session keyring that came from boot init. A kernel without keyrings has nothing to leave."""
    with contextlib.suppress(OSError):
        _check(_invoke(_KEYCTL[MACHINE], _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")


def install_filter(program: bytes) -> None:
    """Installs a seccomp filter; `program` is an array of struct sock_filter (8 bytes each)."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    header = _Program(len(program) // 8, ctypes.addressof(buffer))
    result = _libc.prctl(
        ctypes.c_int(PR_SET_SECCOMP),
        ctypes.c_ulong(SECCOMP_MODE_FILTER),
        ctypes.byref(header),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
    )
    _check(result, "seccomp")


def fork_into_pid_namespace(namespace: int | None) -> int:
    """fork(2), the child being in a new PID namespace or in that of `namespace` (a pidfd or a namespace file).

    The caller stays where it is, and so do its later children.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if namespace is None:
            unshare(CLONE_NEWPID)
        else:
            setns(namespace, CLONE_NEWPID)
        try:
            pid = os.fork()
        except OSError:
            setns(own, CLONE_NEWPID)
            raise
        if pid:  # the child's namespace does not hold this one: it cannot go back, and must not try
            setns(own, CLONE_NEWPID)
        return pid
    finally:
        os.close(own)
