"""A snapshotter without a containerd. Not a test; a part that tests share.

containerd takes a plug-in's snapshots for its own: its garbage collector removes whatever it did not make itself. So who
talks to a snapshotter past containerd needs one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class Snapshotter:
    """Runs from the start; `directory`: short, for a unix socket lies in it."""

    def __init__(self, directory: Path) -> None:
        self.root, self.socket = directory / "sn", directory / "sn.sock"
        self.content = directory / "content"
        self.start()

    def start(self) -> None:
        words = ["--root", str(self.root), "--address", str(self.socket), "--content", str(self.content)]
        command = [sys.executable, "-m", "enclave_cc.host.snapshotter", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"enclave-cc-snapshotter ready")

    def end(self, sig: int) -> int:
        """Its exit code; an ended one ends again with what it had."""
        self.process.send_signal(sig)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code
