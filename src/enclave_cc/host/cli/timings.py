"""Where the time of a start goes: `run --timings FILE`, for measuring."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path


class Timings:
    """Seconds after the command began (as the kernel knows it, in ticks of 10 ms), by stage."""

    def __init__(self) -> None:
        self._began = _read_start(os.getpid())
        self._stages: dict[str, float] = {}

    def reach(self, stage: str) -> None:
        self._stages.setdefault(stage, time.clock_gettime(time.CLOCK_BOOTTIME) - self._began)

    def add_boot(self, told: float, stages: Mapping[str, int]) -> None:
        """Boot init's own stages, in milliseconds after its start; the last was reached at `told` (Unix time)."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME) - self._began
        last = now - (time.time() - told)
        for stage, milliseconds in stages.items():
            self._stages[f"boot: {stage}"] = last - (max(stages.values()) - milliseconds) / 1000

    def write(self, path: Path) -> None:
        """In order of time."""
        path.write_text(json.dumps(dict(sorted(self._stages.items(), key=lambda item: item[1]))))


def _read_start(pid: int) -> float:
    """Start of a process, in seconds of CLOCK_BOOTTIME (proc_pid_stat(5), field 22)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
