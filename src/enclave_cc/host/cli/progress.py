"""What `run` shows while a pod starts: bars on a terminal, lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from enclave_cc.host.cli.timings import Timings
    from enclave_cc.wire.pb.agent import LayerProgress

_MIB = 1 << 20
_LINE_STEP = 8 * _MIB  # a plain line for so many more bytes


class Progress:
    """A `supervisor.Watcher`. `on_running` is called once the workload runs."""

    def __init__(self, *, quiet: bool, on_running: Callable[[], None] | None = None, timings: Timings | None = None) -> None:
        self._timings = timings
        self._quiet = quiet
        self._bars = sys.stderr.isatty() and not quiet
        self._on_running = on_running
        self._lock = threading.Lock()
        self._display: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}

    def reach(self, stage: str) -> None:
        if self._timings is not None:
            self._timings.reach(stage)
        if stage != "pull":
            self._end_display()

    def show_layers(self, layers: tuple[LayerProgress, ...]) -> None:
        if self._quiet:
            return
        with self._lock:
            for layer in layers:
                if self._bars:
                    self._show_bar(layer)
                else:
                    self._say_line(layer)

    def running(self, told: float, stages: Mapping[str, int]) -> None:
        if self._timings is not None:
            self._timings.add_boot(told, stages)
        self._end_display()
        if self._on_running is not None:
            self._on_running()

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    def close(self) -> None:
        self._end_display()

    def _show_bar(self, layer: LayerProgress) -> None:
        if self._display is None:
            from rich.console import Console  # 60 ms, and only when a pull takes long enough to be seen
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._display = Bars(*columns, console=Console(stderr=True), transient=True)
            self._display.start()
        if layer.digest not in self._tasks:
            self._tasks[layer.digest] = self._display.add_task("", total=layer.total)
        name = layer.digest.partition(":")[2][:12]
        self._display.update(self._tasks[layer.digest], completed=layer.done, description=f"{name} {layer.stage:<10}")

    def _say_line(self, layer: LayerProgress) -> None:
        step = layer.done // _LINE_STEP if layer.done < layer.total else -1
        if self._said.get(layer.digest) != step:
            self._said[layer.digest] = step
            name = layer.digest.partition(":")[2][:12]
            print(f"pulling {name}: {layer.done / _MIB:.1f} of {layer.total / _MIB:.1f} MiB, {layer.stage}", file=sys.stderr)

    def _end_display(self) -> None:
        with self._lock:
            if self._display is not None:
                self._display.stop()
                self._display, self._tasks = None, {}
