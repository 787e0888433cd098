"""What the fork server loads before it forks: all that a pod's shim may come to need, so that its forks share it.

A fork copies each page that it writes to, and Python writes to whatever it looks at (reference counts). So whatever is
made here, instead of by each fork, is there once.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

_M_ARENA_MAX = -8  # malloc.h
_MADV_MERGEABLE, _MADV_UNMERGEABLE = 12, 13  # mman.h


def load_all() -> None:
    """Imports, and what modules make at their first use."""
    from enclave_cc import record
    from enclave_cc.errors import EnclaveCcError
    from enclave_cc.host.sandbox import agent_client, configuration, control_client, init_data, streams  # noqa: F401
    from enclave_cc.host.shim import app_container, cpu_process, oom, seccomp, server, stats, surroundings  # noqa: F401
    from enclave_cc.simulator import quoting  # noqa: F401

    with suppress(EnclaveCcError):  # told by the shim that needs it
        configuration.load()
    record.compile_all()
    _enlarge_interned()
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)  # else each thread has one of its own
    # Most pages that forks copied are alike in all of them: a node that runs KSM keeps them once, and no other does anything.
    _advise(libc, _MADV_MERGEABLE)


def withdraw_from_merging() -> None:
    """For a fork that is to hold keys: how long a write takes would tell others on the node which pages are like theirs."""
    _advise(ctypes.CDLL(None), _MADV_UNMERGEABLE)


def _advise(libc: ctypes.CDLL, advice: int) -> None:
    """Mapping by mapping, as prctl(PR_SET_MEMORY_MERGE) would go on to whatever forks execute, workloads included."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode == "rw-p" and inode == "0" and (not name or name[0] == "[heap]"):
            start, end = (int(number, 16) for number in place.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def _enlarge_interned() -> None:
    """Fills the table of Python's interned names until it is made anew with much room: half a megabyte that each fork would
    make for itself when it met its next few names.
    """
    before = _count_pages()
    for number in range(1 << 15):
        sys.intern(f"enclave-cc filler {number}")
        if not number % 256 and abs(_count_pages() - before) > 32:  # the table is tens of pages, and nothing else is made here
            return


def _count_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0])
