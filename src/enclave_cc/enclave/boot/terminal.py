"""Pseudo terminals of the container's own devpts (pty(7), ioctl_tty(2))."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct

from enclave_cc.enclave.boot import filesystem, syscalls
from enclave_cc.errors import EnvironmentFault

_PTMX = "/dev/pts/ptmx"
_TIOCGPTN = 0x80045430


def open_pair(rows: int, columns: int, uid: int) -> tuple[int, int]:
    """Master and slave of a new terminal in this mount namespace's devpts, owned by `uid`. Raises `EnvironmentFault`."""
    try:
        master = os.open(_PTMX, os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        about = os.fstat(master)
        # The workload may have put something else there; this process still has boot init's rights.
        if not stat.S_ISCHR(about.st_mode) or about.st_rdev != os.makedev(5, 2):
            raise EnvironmentFault("launch-failed", "the container's /dev/pts is not a devpts")
        fcntl.ioctl(master, syscalls.TIOCSPTLCK, struct.pack("i", 0))
        # By the master, not by a path: nothing can come in between.
        slave = fcntl.ioctl(master, syscalls.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, uid, filesystem.TTY_GROUP)
        os.fchmod(slave, 0o620)
        resize(master, rows, columns)
    except OSError as error:
        raise EnvironmentFault("launch-failed", f"cannot open a terminal: {error.strerror}") from error
    return master, slave


def bind_console(master: int) -> None:
    """Shows the terminal as /dev/console too. Raises `OSError`."""
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))
    os.close(os.open("/dev/console", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    console = syscalls.clone_mount(f"/dev/pts/{number}")
    syscalls.attach_mount(console, "/dev/console")
    os.close(console)


def make_controlling(slave: int) -> None:
    """Makes `slave` the controlling terminal of this session leader. Raises `OSError`."""
    fcntl.ioctl(slave, syscalls.TIOCSCTTY, 0)


def resize(terminal: int, rows: int, columns: int) -> None:
    """Sets the size in characters; 0 by 0 leaves it. A terminal whose other end is gone has no size to set."""
    if rows or columns:
        with contextlib.suppress(OSError):
            fcntl.ioctl(terminal, syscalls.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
