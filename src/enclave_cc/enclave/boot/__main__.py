"""Boot init: `python -m enclave_cc.enclave.boot --container ID [--handover-deadline SECONDS]` (docs/formats/control.md).

Wires the parts and chooses their implementations. Whatever goes wrong ends as a coded error in the status file and as
the exit code of `errors.TABLE`; standard output and error belong to the workload alone.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence

from enclave_cc.enclave.boot import handover, launch, log, settings, signals, syscalls
from enclave_cc.enclave.boot.control import Listener
from enclave_cc.enclave.boot.init import Supervisor
from enclave_cc.enclave.boot.mount import KernelMounter
from enclave_cc.enclave.boot.status import StatusBoard
from enclave_cc.enclave.tee.open import open_platform
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError, foreign
from enclave_cc.record import record

HANDOVER_DEADLINE = 600.0
_LONGEST_DEADLINE = 86400
_USAGE = "Usage: python -m enclave_cc.enclave.boot --container ID [--handover-deadline SECONDS]"


@record
class Options:
    """Host-authored. `handover_deadline` is in seconds."""

    container: str
    handover_deadline: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Boot init's exit code."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
    except UsageError as misuse:
        print(f"error {misuse}", file=sys.stderr)
        return misuse.exit
    _protect()
    stdio = _take_stdio()
    caught = signals.SignalPipe()
    board = StatusBoard(settings.CONTAINER_DIRECTORY, options.container)
    try:
        return _boot(options, board, caught, stdio)
    except signals.Terminated as ending:
        error: EnclaveCcError = EnvironmentFault("app-died", f"signal {ending.number} ended it before the workload ran")
        code = 128 + ending.number
    except EnclaveCcError as raised:
        error, code = raised, raised.exit
    except Exception as bug:  # noqa: BLE001  (the exit code must come from the table)
        log.write("error", f"{type(bug).__name__}: {foreign(bug)}", where=_where(bug))
        error = EnvironmentFault("internal", f"boot init failed: {type(bug).__name__}")
        code = error.exit
    board.fail(error, code)
    return code


def _boot(options: Options, board: StatusBoard, caught: signals.SignalPipe, stdio: Sequence[int]) -> int:
    deadline = time.monotonic() + options.handover_deadline
    listener = Listener(settings.CONTROL_SOCKET)
    mounter = KernelMounter(settings.BLOB_DIRECTORY, settings.WORK_DIRECTORY)
    try:
        measured = settings.load_settings()
        identity = settings.load_agent_identity()
        platform = open_platform(measured.tee, cpu_socket=settings.CPU_SOCKET)
        board.reach("settings")
        release = handover.fetch_release(
            options.container,
            agent_socket=settings.AGENT_SOCKET,
            platform=platform,
            identity=identity,
            deadline=deadline,
            on_agent=lambda: board.reach("agent"),
        )
        board.reach("handover")
        statement = release.launch
        if not statement.stdin:
            _empty_input(stdio)
        plan = launch.interpret(statement)
        syscalls.make_private("/")
        root = mounter.mount(release.rootfs, upper_size=statement.upper_size, deadline=measured.mount_deadline)
        del release  # the keys are the server's now
        board.reach("mount")
        return Supervisor(
            plan,
            root,
            board=board,
            signals=caught,
            listener=listener,
            stdio=stdio,
            server_pid=mounter.server_pid,
            start_deadline=measured.start_deadline,
            find_cause=lambda: mounter.failure,
        ).run()
    finally:
        mounter.close()
        listener.close()


def _parse(arguments: Sequence[str]) -> Options:
    """By hand: argparse would take a tenth of the start-up. Raises `UsageError`."""
    values = dict.fromkeys(("--container", "--handover-deadline"), "")
    rest = list(arguments)
    while rest:
        name, joined, value = rest.pop(0).partition("=")
        if not joined and rest:
            value = rest.pop(0)
        if name not in values or not value:
            raise UsageError("usage", f"{foreign(name)} is no option of boot init, or has no value", _USAGE)
        values[name] = value
    if not values["--container"]:
        raise UsageError("usage", "no container is named", _USAGE)
    try:
        deadline = float(values["--handover-deadline"] or HANDOVER_DEADLINE)
    except ValueError:
        deadline = 0.0
    if not 0 < deadline <= _LONGEST_DEADLINE:
        raise UsageError("usage", f"the handover deadline is not a number of seconds up to {_LONGEST_DEADLINE}", _USAGE)
    return Options(values["--container"], deadline)


def _protect() -> None:
    """No core file and no ptrace shows this process's memory. The environment is the host's; nothing below reads it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    os.umask(0o077)


def _take_stdio() -> list[int]:
    """The workload's streams, out of the way; ours become /dev/null and the log."""
    taken = [os.dup(fd) for fd in range(3)]
    nothing = os.open("/dev/null", os.O_RDWR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        ours = os.open(settings.LOG, flags, 0o600)
    except OSError:
        ours = os.dup(nothing)
    for source, target in ((nothing, 0), (ours, 1), (ours, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(ours)
    return taken


def _empty_input(stdio: Sequence[int]) -> None:
    """Whatever the host connected: the owner did not allow it to be read."""
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, stdio[0], inheritable=False)
    os.close(nothing)


def _where(bug: Exception) -> str:
    # Without values: they may be secret, and the log is the host's.
    frames = []
    trace = bug.__traceback__
    while trace is not None:
        frames.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(frames)


if __name__ == "__main__":
    sys.exit(main())
