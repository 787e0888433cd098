"""What boot init needs to know to start a workload and the processes that exec adds to it."""

from __future__ import annotations

import resource
import signal

from enclave_cc.enclave.boot import capabilities, filesystem
from enclave_cc.enclave.boot.process import ProcessSpec
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record, replace
from enclave_cc.wire.control.message import ExecRequest
from enclave_cc.wire.launch.limits import UNLIMITED, Rlimit
from enclave_cc.wire.launch.overrides import read_filter
from enclave_cc.wire.launch.statement import LaunchStatement


@record
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


def interpret(statement: LaunchStatement) -> Launch:
    """Raises `PeerError("launch-failed")` for a statement that this machine's terms cannot express."""
    process = ProcessSpec(
        args=statement.args,
        env=statement.env,
        cwd=statement.cwd,
        user=statement.user,
        groups=statement.groups,
        capabilities=capabilities.parse_names(statement.capabilities),
        ambient=capabilities.parse_names(statement.ambient),
        no_new_privileges=statement.no_new_privileges,
        seccomp=read_filter(statement.seccomp),
        rlimits=tuple(_interpret_limit(limit) for limit in statement.rlimits),
        terminal=statement.terminal,
    )
    return Launch(
        process=process,
        view=filesystem.View(
            volumes=statement.volumes,
            files=statement.files,
            scratch=statement.scratch,
            read_only_root=statement.read_only_root,
            tmpfs=statement.tmpfs,
            masked=statement.masked,
            sealed=statement.sealed,
        ),
        hostname=statement.hostname or None,
        allow_exec=statement.allow_exec,
        stop_signal=statement.stop_signal,
    )


def _interpret_limit(limit: Rlimit) -> tuple[int, int, int]:
    number = getattr(resource, limit.name, None)
    if not isinstance(number, int):
        raise PeerError("launch-failed", f"there is no resource limit {foreign(limit.name)!r}")
    soft, hard = (resource.RLIM_INFINITY if value == UNLIMITED else value for value in (limit.soft, limit.hard))
    return number, soft, hard
