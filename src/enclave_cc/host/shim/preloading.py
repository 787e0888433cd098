"""What the fork server loads before it forks: all that a pod's shim may come to need, so that its forks share it.

A fork copies each page that it writes to, and Python writes to whatever it looks at (reference counts). So whatever is
made here, instead of by each fork, is there once.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_M_ARENA_MAX = -8  # malloc.h
_PR_SET_MEMORY_MERGE = 67  # since Linux 6.4


def load_all() -> None:
    """Imports, and what modules make at their first use."""
    import ctypes

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
    # Most pages that forks copied are alike in all of them: a node that runs KSM keeps them once. No secret of an owner is
    # in a shim. Where KSM does not run, this does nothing.
    libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0)


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
