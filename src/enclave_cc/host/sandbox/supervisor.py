"""One pod with one app container, from nothing to its exit code.

The main thread only waits: for signals, for the start to end, for the workload to end. The start runs in threads beside
it, so that a signal or a death is answered at once, however long a pull takes. Whatever happens, the pod is taken down
before `run` returns.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError, explain_os_error, foreign
from enclave_cc.host.sandbox import control_client
from enclave_cc.host.sandbox.logs import LogWriter
from enclave_cc.host.sandbox.pod import AppOptions, Pod, Running
from enclave_cc.host.sandbox.runc import Stdio
from enclave_cc.host.sandbox.states import Event
from enclave_cc.host.sandbox.streams import InputPump, Pump, RawTerminal, get_size
from enclave_cc.record import record
from enclave_cc.wire.control import message
from enclave_cc.wire.control.status import State as BootState
from enclave_cc.wire.control.status import Status

if TYPE_CHECKING:
    from enclave_cc.host.sandbox.agent_client import AgentClient
    from enclave_cc.wire.pb.agent import LayerProgress

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# Seconds that a thread may compute while another waits: a thread that imports modules must not hold up one that a
# process waits for. Python's 5 ms would be paid for each answer of a socket.
SWITCH_INTERVAL = 0.0005
_PROGRESS_INTERVAL = 0.2
_STATUS_INTERVAL = 0.002
_CAUSE_DEADLINE = 2.0  # seconds for the agent's answer, once boot init has got it
_DRAIN_DEADLINE = 10.0
_PAUSE_DELAY = 0.25


class Watcher(Protocol):
    """Who wants to know how far the start is. Called from several threads, and for as long as the start takes."""

    def reach(self, stage: str) -> None:
        """`stage`: sandbox, then in any order platform, agent container, app container, pause container; agent, pull,
        create, running.
        """

    def show_layers(self, layers: tuple[LayerProgress, ...]) -> None:
        """While the agent pulls."""

    def running(self, told: float, stages: Mapping[str, int]) -> None:
        """The workload runs; whoever detaches may do so now.

        Boot init told so at `told` (Unix time); its stages are in milliseconds after its own start.
        """

    def warn(self, text: str) -> None:
        """Something that did not stop us."""


@record(kw_only=True)
class Streams:
    """The watcher's own descriptors; None where there is nobody to read or write."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    terminal: bool = False

    @property
    def screen(self) -> int | None:
        """The user's terminal, if it is one: where keys come from, else where output goes."""
        return self.stdout if self.stdin is None else self.stdin


@record
class Outcome:
    """How the workload ended. `error` says more when something of ours, or a limit, ended it."""

    exit_code: int
    error: EnclaveCcError | None = None


class Supervisor:
    """Runs `app` in `pod`; `overrides` is the JSON for the agent. One use."""

    def __init__(self, pod: Pod, app: AppOptions, overrides: bytes, streams: Streams, watcher: Watcher) -> None:
        self._pod = pod
        self._app = app
        self._overrides = overrides
        self._streams = streams
        self._watcher = watcher
        self._deadlines = pod.configuration.deadlines
        self._agent: AgentClient | None = None
        self._pause: threading.Thread | None = None
        self._ending = threading.Event()
        self._errors: list[EnclaveCcError] = []
        self._guard = threading.Lock()
        self._started: dict[str, Running] = {}
        self._pumps: list[Pump] = []
        self._log: LogWriter | None = None
        self._boot_log: LogWriter | None = None
        self._master: int | None = None
        self._input: InputPump | None = None
        self._raw: RawTerminal | None = None
        self._begun = False  # boot init has said that the workload runs

    def run(self) -> Outcome:
        """The workload's outcome. Raises the coded error of a start that failed; the pod is gone in both cases."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in (*FORWARDED, signal.SIGWINCH)}
        try:
            return self._run(reader)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            os.close(reader)
            os.close(writer)

    def _run(self, signals: int) -> Outcome:
        event, outcome, failure = Event.FAIL, None, None
        try:
            self._pod.advance(Event.START, image=self._app.image, container=self._app.container, **dict(self._app.description))
            outcome = self._live(signals)
            event, failure = Event.EXIT, outcome.error
        except EnclaveCcError as error:
            failure = error
            raise
        else:
            return outcome
        finally:
            self._close()
            try:
                self._pod.finish(event, exit_code=outcome.exit_code if outcome else None, error=failure)
            except EnclaveCcError as error:  # the outcome matters more; the next command tries again
                self._watcher.warn(str(error))

    def _live(self, signals: int) -> Outcome:
        done = threading.Event()
        ended_reader, ended_writer = os.pipe2(os.O_CLOEXEC)

        def start() -> None:
            try:
                self._start()
            except EnclaveCcError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - our bug; it must end the pod, not hang it
                self._fail(UsageError("internal", f"starting the pod: {type(error).__name__}: {foreign(error)}"))
            finally:
                done.set()
                os.close(ended_writer)

        starter = threading.Thread(target=start, name="start", daemon=True)
        gc.disable()  # a start imports much and frees nothing
        switching = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        starter.start()
        try:
            stopped = self._wait_start(signals, ended_reader)
        finally:
            if not done.is_set():
                self._pod.kill()  # the agent's death ends its calls
            starter.join()
            gc.enable()
            sys.setswitchinterval(switching)
            os.close(ended_reader)
        app = self._started.get("app")
        if stopped is not None and not self._begun:
            self._pod.kill()
            self._pod.advance(Event.STOP)
            return Outcome(128 + stopped)
        if self._errors or app is None:
            raise self._explain_start(app)
        return self._wait_end(signals, app)

    # --- start

    def _start(self) -> None:
        app = self._app
        self._watcher.reach("sandbox")
        self._open_logs()
        starting = self._spawn(self._start_agent)
        others = [self._spawn(self._serve_platform)]
        try:
            from enclave_cc.host.sandbox.agent_client import AgentClient  # while runc works

            agent = self._agent = AgentClient(self._pod.agent_socket, deadline=self._deadlines.agent_start)
            starting.join()
            if self._errors:
                return
            # Behind the agent, which all else of the start waits for; boot init would soon wait for its keys.
            others.append(self._spawn(self._start_app))
            self._watcher.reach("agent")
            agent.wait(self._started["agent"].pidfd, deadline=self._deadlines.agent_start)
            self._watcher.reach("pull")
            self._pull(agent)
            self._watcher.reach("create")
            agent.create_container(app.container, app.image, self._overrides)
        finally:
            for thread in others:
                thread.join()
        if not self._errors:
            self._wait_running()

    def _spawn(self, step: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(step,), name="start-step", daemon=True)
        thread.start()
        return thread

    def _serve_platform(self) -> None:
        self._pod.serve_platform([self._app.container])
        self._watcher.reach("platform")

    def _start_agent(self) -> None:
        self._keep("agent", self._pod.start_agent())

    def _start_app(self) -> None:
        pause = None
        if self._pod.options.network == "pod":
            pause = self._pod.start_pause()
            self._keep("pause", pause)
        stdio, owned = self._open_stdio()
        try:
            deadline = self._deadlines.agent_start + self._deadlines.pull + self._deadlines.app_start
            self._keep("app", self._pod.start_app(self._app, stdio, pause=pause, handover_deadline=deadline))
        finally:
            for descriptor in owned:
                os.close(descriptor)

    def _start_pause(self) -> None:
        if self._ending.wait(_PAUSE_DELAY):  # a pod that is over by then has no use for it
            return
        try:
            self._keep("pause", self._pod.start_pause())
        except (EnclaveCcError, OSError) as error:
            if not self._pod.is_killed():
                told = explain_os_error(error) if isinstance(error, OSError) else error
                self._watcher.warn(f"the pause container: {told}")

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except EnclaveCcError as error:
            self._fail(error)
        except OSError as error:
            self._fail(explain_os_error(error, f"starting the pod: {error.filename or 'a system call'}"))
        except Exception as error:  # noqa: BLE001 - our bug; it must end the pod, not hang it
            self._fail(UsageError("internal", f"starting the pod: {type(error).__name__}: {foreign(error)}"))

    def _keep(self, role: str, running: Running) -> None:
        with self._guard:
            self._started[role] = running
        self._watcher.reach(f"{role} container")

    def _fail(self, error: EnclaveCcError) -> None:
        """The first error is the cause; ending the pod makes what waits for it fail too."""
        with self._guard:
            self._errors.append(error)
        self._pod.kill()

    def _pull(self, agent: AgentClient) -> None:
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_PROGRESS_INTERVAL):
                with suppress(EnclaveCcError):
                    self._watcher.show_layers(agent.get_pull_progress(self._app.container).layers)

        looker = threading.Thread(target=look, name="progress", daemon=True)
        looker.start()
        try:
            agent.pull_image(self._app.container, self._app.image, deadline=self._deadlines.pull)
        finally:
            ended.set()
            looker.join()

    def _wait_running(self) -> None:
        """Until boot init says that the workload runs, or has ended. Raises coded errors."""
        until = time.monotonic() + self._deadlines.app_start
        app = self._started["app"]
        poll = select.poll()
        poll.register(app.pidfd, select.POLLIN)
        path = self._pod.shared(app.container) / "status.json"
        while True:
            dead = bool(poll.poll(_STATUS_INTERVAL * 1000))
            status = control_client.read_status(path)
            if self._streams.terminal and self._master is None and not dead and (path.parent / "control.sock").exists():
                self._fetch_terminal(path.parent / "control.sock")
            if status is not None and status.state in (BootState.RUNNING, BootState.EXITED):
                self._begin(status.stages)
                return
            if status is not None and status.state is BootState.ERROR and status.error is not None:
                raise _StartRefused(status)
            if dead:
                raise EnvironmentFault("app-died", "the app enclave ended before its workload ran")
            if time.monotonic() > until:
                raise EnvironmentFault("deadline", f"the workload did not run within {self._deadlines.app_start:g} s")

    def _begin(self, stages: Mapping[str, int]) -> None:
        with self._guard:
            self._begun = True
        with suppress(UsageError):  # being stopped already
            self._pod.advance(Event.RUN, started=time.time(), app_pid=self._started["app"].pid)
        self._watcher.reach("running")
        told = (self._pod.shared(self._app.container) / "status.json").stat().st_mtime
        self._watcher.running(told, stages)
        if "pause" not in self._started:
            # It holds namespaces for containers that join the pod; with none to share yet, the workload does not wait.
            self._pause = threading.Thread(target=self._start_pause, name="pause", daemon=True)
            self._pause.start()

    def _explain_start(self, app: Running | None) -> EnclaveCcError:
        """The error to report of a start that failed: the cause, not what it dragged along."""
        status = self._read_status()
        errors = list(self._errors)
        if app is not None and self._pod.count_oom_kills(app.container):
            return EnvironmentFault("memory-limit", "the kernel killed a process of the container at its memory limit")
        if self._pod.count_oom_kills(f"{self._pod.id}-agent"):
            return EnvironmentFault("memory-limit", "the kernel killed the agent enclave at its memory limit")
        first = errors[0] if errors else EnvironmentFault("app-died", "the app enclave did not start")
        if first.code == "app-died" and status is not None and status.error is not None:
            return _StartRefused(status)
        agent = self._started.get("agent")
        if first.code == "agent-unreachable" and agent is not None and _is_ended(agent):
            return EnvironmentFault("agent-died", "the agent enclave ended while it was needed")
        return first

    # --- waiting

    def _wait_start(self, signals: int, ended: int) -> int | None:
        """Until the start ended or was stopped; the stopping signal, if one."""
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(ended, select.POLLHUP | select.POLLIN)
        watched: dict[int, str] = {}
        while True:
            for role, running in list(self._started.items()):
                if running.pidfd not in watched and role in ("agent", "app"):
                    watched[running.pidfd] = role
                    poll.register(running.pidfd, select.POLLIN)
            ready = [number for number, _ in poll.poll(None if len(watched) == 2 else 20)]
            if ended in ready:
                return None
            if signals in ready:
                for number in _read_signals(signals):
                    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                        if not self._begun:
                            return number
                        self._forward(number)
            for number in watched.keys() & set(ready):
                role = watched[number]
                poll.unregister(number)  # stays in `watched`: looked at once
                if self._begun:
                    continue
                if role == "agent":
                    self._fail(EnvironmentFault("agent-died", "the agent enclave ended while the pod started"))
                    continue
                status = self._read_status()
                if status is not None and status.error is not None and status.error.code == "handover-refused":
                    # The agent had a reason, and is about to tell it to the start: that is the cause.
                    causes = select.poll()
                    causes.register(ended, select.POLLHUP | select.POLLIN)
                    causes.poll(_CAUSE_DEADLINE * 1000)
                if status is None or status.state not in (BootState.RUNNING, BootState.EXITED):
                    # else the workload ran and ended already, and the start is about to see it
                    self._fail(EnvironmentFault("app-died", "the app enclave ended before its workload ran"))

    def _wait_end(self, signals: int, app: Running) -> Outcome:
        """Forwards signals until the workload ended."""
        self._pump_input()
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(app.pidfd, select.POLLIN)
        while True:
            ready = [number for number, _ in poll.poll()]
            if signals in ready:
                for number in _read_signals(signals):
                    self._forward(number)
            if app.pidfd in ready:
                break
        self._drain()
        code = self._pod.wait_exit(app)
        status = self._read_status()
        if self._pod.count_oom_kills(app.container) and code in (137, status.exit_code if status else 137):
            return Outcome(137, EnvironmentFault("memory-limit", "the kernel killed a process at the container's memory limit"))
        if status is not None and status.error is not None:
            return Outcome(status.exit_code if status.exit_code is not None else code, control_client.to_error(status.error))
        return Outcome(code)

    def _forward(self, number: int) -> None:
        control = self._pod.shared(self._app.container) / "control.sock"
        if number == signal.SIGWINCH:
            if self._streams.terminal:
                rows, columns = self._get_size()
                self._ask(control_client.ask, control, message.ResizeRequest(rows, columns))
        elif number in FORWARDED:
            self._ask(control_client.ask, control, message.SignalRequest(number))

    def _ask(self, call: Callable[..., object], *arguments: object) -> None:
        """A request that may come too late; a deadline keeps a stuck boot init from holding us."""
        try:
            call(*arguments, deadline=self._deadlines.stop)
        except EnclaveCcError as error:
            if error.code not in ("wrong-state", "app-died"):
                self._watcher.warn(str(error))

    # --- streams

    def _open_logs(self) -> None:
        limit = self._pod.configuration.limits.log_bytes
        self._log = LogWriter(self._pod.directory / "output.log", limit=limit)
        if self._streams.terminal:
            self._boot_log = LogWriter(self._pod.directory / "boot-output.log", limit=limit)

    def _open_stdio(self) -> tuple[Stdio, list[int]]:
        """The container's streams, and the descriptors to close here once it has them.

        Input is passed as it is; output goes through us into the log. With a terminal these are boot init's own only.
        """
        log, boot_log = self._log, self._boot_log
        owned = []
        if self._streams.stdin is not None and not self._streams.terminal:
            stdin = self._streams.stdin
        else:
            stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            owned.append(stdin)
        writers = []
        for name, sink in (("stdout", self._streams.stdout), ("stderr", self._streams.stderr)):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            target = boot_log if self._streams.terminal else log
            observe = None if target is None else _observer(target, name)
            pump = Pump(reader, None if self._streams.terminal else sink, observe)
            pump.start()
            self._pumps.append(pump)
            owned.append(writer)
            writers.append(writer)
        return Stdio(stdin, *writers), owned

    def _fetch_terminal(self, control: Path) -> None:
        """Takes the workload's terminal from boot init, which starts the workload only then."""
        rows, columns = self._get_size()
        request = message.TerminalRequest(rows, columns)
        _, descriptors = control_client.ask(control, request, deadline=self._deadlines.app_start)
        if not descriptors:
            raise PeerError("malformed", "boot init gave no terminal")
        self._master, *others = descriptors
        for other in others:
            os.close(other)
        screen = self._streams.screen
        if screen is not None:  # before the first byte comes
            self._raw = RawTerminal(screen, keys=self._streams.stdin is not None)
            self._raw.__enter__()
        log = self._log
        pump = Pump(os.dup(self._master), self._streams.stdout, None if log is None else _observer(log, "stdout"))
        pump.start()
        self._pumps.append(pump)

    def _get_size(self) -> tuple[int, int]:
        screen = self._streams.screen
        return get_size(screen) if screen is not None else (0, 0)

    def _pump_input(self) -> None:
        if self._streams.terminal and self._streams.stdin is not None and self._master is not None:
            self._input = InputPump(self._streams.stdin, self._master)
            self._input.start()

    def _drain(self) -> None:
        """What the workload printed last is still on its way."""
        if self._input is not None:
            self._input.stop()
            self._input = None
        if self._master is not None:
            os.close(self._master)
            self._master = None
        until = time.monotonic() + _DRAIN_DEADLINE
        for pump in self._pumps:
            pump.join(max(0.0, until - time.monotonic()))

    def _close(self) -> None:
        self._ending.set()
        self._pod.kill()  # nobody writes any more
        self._drain()
        if self._raw is not None:
            self._raw.__exit__()
        if self._agent is not None:
            self._agent.close()
        if self._pause is not None:
            self._pause.join()
        for log in (self._log, self._boot_log):
            if log is not None:
                log.close()
        self._log = self._boot_log = None

    def _read_status(self) -> Status | None:
        try:
            return control_client.read_status(self._pod.shared(self._app.container) / "status.json")
        except PeerError:
            return None


class _StartRefused(PeerError):
    """Boot init's own reason; `exit_code` is 126 or 127 for a command that cannot be executed."""

    def __init__(self, status: Status) -> None:
        assert status.error is not None  # noqa: S101 - the callers looked
        super().__init__(status.error.code, foreign(status.error.what), foreign(status.error.fix))
        self.exit_code = status.exit_code

    @property
    def exit(self) -> int:
        return self.exit_code if self.exit_code is not None else self.row.exit


def _observer(log: LogWriter, stream: str) -> Callable[[bytes], None]:
    return lambda data: log.write(stream, data)


def _read_signals(descriptor: int) -> list[int]:
    try:
        return list(os.read(descriptor, 64))
    except BlockingIOError:
        return []


def _is_ended(running: Running) -> bool:
    poll = select.poll()
    poll.register(running.pidfd, select.POLLIN)
    return bool(poll.poll(0))
