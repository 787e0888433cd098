"""Being told of OOM kills in a control group, on both versions."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from enclave_cc.host.sandbox import cgroups
from enclave_cc.host.shim.reaper import Reaper

_IN_MODIFY, _IN_IGNORED_MASK = 2, 0x8000
_IN_CLOEXEC, _IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK


def watch(group: str, reaper: Reaper, tell: Callable[[], None]) -> None:
    """Calls `tell` at each event until the group is removed. Raises `OSError` where the kernel cannot."""
    place = group.lstrip("/")
    memory = cgroups.ROOT / "memory" / place
    if (memory / "cgroup.event_control").exists():
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                (memory / "cgroup.event_control").write_text(f"{descriptor} {control}")
            finally:
                os.close(control)
        except OSError:
            os.close(descriptor)
            raise
        file = memory / "memory.oom_control"
    else:
        file = cgroups.ROOT / place / "memory.events"
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(file), _IN_MODIFY) < 0:
            code = ctypes.get_errno()
            if descriptor >= 0:
                os.close(descriptor)
            raise OSError(code, os.strerror(code))

    def woken() -> None:
        try:
            data = os.read(descriptor, 4096)
        except BlockingIOError:
            data = b""
        if not file.exists() or (len(data) >= 16 and int.from_bytes(data[4:8], "little") & _IN_IGNORED_MASK):
            os.close(descriptor)  # the group is gone
            return
        tell()
        reaper.watch(descriptor, woken)

    reaper.watch(descriptor, woken)
