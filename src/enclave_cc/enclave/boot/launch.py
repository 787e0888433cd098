"""What boot init needs to know to start a workload and the processes that exec adds to it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from enclave_cc.enclave.boot import filesystem
from enclave_cc.enclave.boot.process import ProcessSpec
from enclave_cc.wire.control.message import ExecRequest


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch statement made executable. `hostname` None keeps the container's."""

    process: ProcessSpec
    view: filesystem.View
    hostname: str | None = None
    allow_exec: bool = False
    stop_signal: int = signal.SIGTERM

    def make_exec(self, request: ExecRequest) -> ProcessSpec:
        """The process that `request` asks for: the statement's, with what the request names in its place."""
        return replace(
            self.process,
            args=request.args,
            env=(*self.process.env, *request.env),
            cwd=self.process.cwd if request.cwd is None else request.cwd,
            user=self.process.user if request.user is None else request.user,
            terminal=request.terminal,
            rows=request.rows,
            columns=request.columns,
        )
