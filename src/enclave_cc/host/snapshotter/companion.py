"""Keeps the shims' fork server running beside the snapshotter, which every node has anyway.

It is started, asked now and then whether it answers, killed when it does not, and started again when it has ended. All it
costs when it is away is speed, so nothing here fails the snapshotter. It ends with us: its standard input is our pipe.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress

from enclave_cc.host.shim import fork_server, launcher

_LOOK = 15.0  # seconds between questions
_PAUSE = 1.0  # before it is started again, and between questions until it first answers
_LONGEST_PAUSE = 60.0
_MISSES = 2  # unanswered questions in a row, each with `ask`'s deadline, until it counts as hung
_FIRST_MISSES = 20  # while it loads


class Companion(threading.Thread):
    """`start` it; `close` ends the fork server, not its forks.

    `configuration`: the file that shims will read, if it is not the node's; the server reads it ahead.
    """

    def __init__(self, configuration: str | None = None) -> None:
        super().__init__(name="fork-server", daemon=True)
        self._environment = {**os.environ, **({"ENCLAVE_CC_CONFIG": configuration} if configuration else {})}
        self._closing = threading.Event()
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def close(self) -> None:
        self._closing.set()
        with self._guard:
            process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()  # it ends itself then, and leaves no socket
        self.join(_LOOK)

    def run(self) -> None:
        pause = _PAUSE
        while not self._closing.is_set():
            answered = False
            try:
                with self._guard:
                    command = launcher.fork_server_command()
                    process = self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=self._environment)
            except OSError as error:
                _report(f"cannot be started: {error.strerror}")
            else:
                answered = self._watch(process)
            pause = _PAUSE if answered else min(2 * pause, _LONGEST_PAUSE)
            self._closing.wait(pause)

    def _watch(self, process: subprocess.Popen[bytes]) -> bool:
        """Until it has ended; whether it ever answered."""
        answered, misses = False, 0
        with process:
            while not self._has_ended(process, _LOOK if answered else _PAUSE):
                # It has loaded what lies on disk; that may be newer than what we have.
                if fork_server.ask("ping", (), (), code=fork_server.identify_code()):
                    answered, misses = True, 0
                else:
                    misses += 1
                if misses >= (_MISSES if answered else _FIRST_MISSES) and process.poll() is None:
                    _report("does not answer; it is started anew")
                    process.kill()
                if self._closing.is_set():
                    process.kill()
            if not self._closing.is_set():
                _report(f"ended with {process.returncode}")
        return answered

    def _has_ended(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode is not None


def _report(what: str) -> None:
    print(f"enclave-cc-snapshotter: the shims' fork server {what}", file=sys.stderr, flush=True)
