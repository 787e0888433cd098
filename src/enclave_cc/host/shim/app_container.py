"""A container whose workload runs in an app enclave. The agent pulls and decides; boot init starts and ends it."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError, foreign
from enclave_cc.host.sandbox import control_client, known_images
from enclave_cc.host.sandbox.control_client import ControlConnection
from enclave_cc.host.sandbox.directories import shorten
from enclave_cc.host.shim import mounts
from enclave_cc.host.shim import workload as workloads
from enclave_cc.host.shim.containers import Asked, Container, require_streams
from enclave_cc.host.shim.processes import KILLED_EXIT, Process
from enclave_cc.host.shim.states import Event, State
from enclave_cc.host.shim.stdio import Names
from enclave_cc.wire.control import message
from enclave_cc.wire.control.status import State as BootState
from enclave_cc.wire.control.status import Status

if TYPE_CHECKING:
    from pathlib import Path

    from enclave_cc.host.sandbox.agent_client import AgentClient
    from enclave_cc.host.sandbox.pod import Running
    from enclave_cc.host.shim.sandbox import Sandbox

_STATUS_INTERVAL = 0.002
_PROGRESS_INTERVAL = 1.0
# Signals that boot init passes on as they are; the rest goes through its control socket.
_DIRECT = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


class AppContainer(Container):
    """`create` may take as long as a pull; all else is answered meanwhile."""

    def __init__(self, sandbox: Sandbox, asked: Asked, runc_id: str) -> None:
        super().__init__(sandbox, asked, runc_id)
        self.workload = workloads.translate(asked.spec, terminal=asked.names.terminal, stdin=bool(asked.names.stdin))
        self._failure: EnclaveCcError | None = None
        self._decided = threading.Event()  # the image is there, or creating was given up

    @property
    def control(self) -> Path:
        return self.sandbox.pod.shared(self.runc_id) / "control.sock"

    # --- create

    def create(self) -> None:
        try:
            self._create()
        except EnclaveCcError as error:
            cause = self._explain(error)
            self.abandon()
            if cause is error:
                raise
            raise cause from error

    def _create(self) -> None:
        sandbox = self.sandbox
        self.streams = sandbox.open_streams(self.names)
        starter = threading.Thread(target=self._guarded, args=(self._start_enclave,), name="app", daemon=True)
        starter.start()
        try:
            agent = sandbox.wait_agent(self._decided.is_set)
            self._check()
            self._pull(agent)
        finally:
            starter.join()
        self._check()
        self.advance(Event.CREATE)

    def _start_enclave(self) -> None:
        streams = require_streams(self.streams)
        try:
            running = self.sandbox.start_app(self, self.workload, streams.stdio)
        finally:
            streams.release()
        self.watch_init(running)
        if self._failure is not None:  # given up meanwhile
            self._end_init()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except EnclaveCcError as error:
            self.give_up(error)
        except Exception as error:  # noqa: BLE001 - our bug, and it must not hang the step beside it
            self.give_up(UsageError("internal", f"making the container: {type(error).__name__}: {foreign(error)}"))

    def _pull(self, agent: AgentClient) -> None:
        """Ends when it is given up, whatever the agent does."""
        image, deadline = self.workload.image, self.sandbox.deadlines.pull
        digests: list[str] = []

        def pull() -> None:
            digests.append(agent.pull_image(self.runc_id, image, deadline=deadline).manifest_digest)
            self._decided.set()

        def look() -> None:
            while not self._decided.wait(_PROGRESS_INTERVAL):
                with suppress(EnclaveCcError):
                    layers = agent.get_pull_progress(self.runc_id).layers
                    done, total = sum(layer.done for layer in layers), sum(layer.total for layer in layers)
                    self.sandbox.log.write("info", "pulling", container=self.id, image=image, bytes=done, of=total)

        threading.Thread(target=self._guarded, args=(pull,), name="pull", daemon=True).start()
        threading.Thread(target=look, name="progress", daemon=True).start()
        self._decided.wait()
        self._check()
        self.sandbox.log.write("info", "pulled", container=self.id, image=image, digest=digests[0])
        self._check_known(digests[0])

    def _check_known(self, digest: str) -> None:
        """That the image which the enclave will run is the one that the cluster knows the container by.

        1. its manifest is one that containerd pulled
        2. CRI has no other manifest of the same configuration: which of them a pod meant, it does not tell (containerd
           1.6 names either). The pod may say so itself. Images of one manifest in two repositories are alike but in name.

        Raises `PeerError("digest-mismatch")`, `UsageError("bad-reference")`.
        """
        image, known = self.workload.image, known_images.read(mounts.find_top(self.asked.rootfs))
        # 1
        if known and digest not in known:
            raise PeerError(
                "digest-mismatch",
                f"containerd pulled {' or '.join(sorted(known))} as {image}, the enclave {digest}",
                "The tag has moved: pull the image anew, or name it by digest.",
            )
        # 2
        others = known_images.find_namesakes(known, digest)
        if others and not workloads.names_own_image(workloads.annotations_of(self.asked.spec)):
            raise UsageError(
                "bad-reference",
                f"containerd takes {digest} ({image}) and {' and '.join(others)} for one image: they have one configuration",
                f"Publish with a marker layer, remove the other image from the node, or name the one with the annotation "
                f"{workloads.OWN_IMAGE}.CONTAINER.",
            )

    def give_up(self, error: EnclaveCcError) -> None:
        """Ends a creation that is under way; the first reason counts. Waits for nothing: who creates takes away what is there."""
        with self._guard:
            if self._failure is None:
                self._failure = error
        self._end_init()
        self._decided.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def on_exit(self, status: int) -> None:
        if self.state is State.CREATING:
            self.give_up(EnvironmentFault("app-died", f"the app enclave ended with {status} while its image was pulled"))
        else:
            told = self._read_status()
            if told is not None and told.error is not None:
                self.sandbox.log.write("error", str(control_client.to_error(told.error)), container=self.id)
        if self.names.terminal:  # containerd waits for the end of the output before it deletes
            threading.Thread(target=self.close_streams, name="drain", daemon=True).start()

    def abandon(self) -> None:
        """After a creation that failed: takes away what there is of it."""
        self._end_init()
        running = self.running
        if running is not None:
            until = time.monotonic() + self.sandbox.deadlines.remove
            while self._init_exit is None and time.monotonic() < until:
                time.sleep(_STATUS_INTERVAL)
        self.close_streams()
        self.sandbox.remove_app(self)
        self.running = None

    # --- start

    def let_go(self) -> None:
        agent = self.sandbox.wait_agent()
        try:
            agent.create_container(self.runc_id, self.workload.image, self.workload.overrides.encode())
            self._wait_running()
        except EnclaveCcError as error:
            cause = self._explain(error)
            if cause is error:
                raise
            raise cause from error

    def _wait_running(self) -> None:
        """Until boot init says that the workload runs, or has ended. Raises coded errors."""
        running = self.running
        assert running is not None  # noqa: S101 - it was created
        until = time.monotonic() + self.sandbox.deadlines.app_start
        path = self.sandbox.pod.shared(self.runc_id) / "status.json"
        attached = not self.names.terminal
        while True:
            dead = self._init_exit is not None
            status = control_client.read_status(path)
            if not attached and not dead and self.control.exists():
                self._attach_terminal()
                attached = True
            if status is not None and status.state in (BootState.RUNNING, BootState.EXITED):
                return
            if status is not None and status.error is not None:
                raise control_client.to_error(status.error)
            if dead:
                raise EnvironmentFault("app-died", "the app enclave ended before its workload ran")
            if time.monotonic() > until:
                raise EnvironmentFault("deadline", f"the workload did not run within {self.sandbox.deadlines.app_start:g} s")
            _poll_process(running, _STATUS_INTERVAL)

    def _attach_terminal(self) -> None:
        deadline = self.sandbox.deadlines.app_start
        request = message.TerminalRequest(*self.workload.console)
        _, descriptors = control_client.ask(self.control, request, deadline=deadline)
        if not descriptors:
            raise PeerError("malformed", "boot init gave no terminal")
        require_streams(self.streams).attach(descriptors[0])

    def _explain(self, error: EnclaveCcError) -> EnclaveCcError:
        """The cause, where `error` is what it dragged along."""
        if self._failure is not None:
            error = self._failure
        if self.sandbox.count_oom_kills(self):
            return EnvironmentFault("memory-limit", "the kernel killed a process of the container at its memory limit")
        status = self._read_status()
        if error.code == "app-died" and status is not None and status.error is not None:
            return control_client.to_error(status.error)
        if error.code == "agent-unreachable" and self.sandbox.is_agent_dead():
            return EnvironmentFault("agent-died", "the agent enclave ended while it was needed")
        return error

    def _read_status(self) -> Status | None:
        try:
            return control_client.read_status(self.sandbox.pod.shared(self.runc_id) / "status.json")
        except PeerError:
            return None

    # --- while it runs

    def kill(self, number: int) -> None:
        if self.state is State.CREATING:
            self.give_up(EnvironmentFault("app-died", f"signal {number} ended the container while it was made"))
        elif number in _DIRECT or self.state is not State.RUNNING:
            super().kill(number)
        else:
            self.require_alive()
            control_client.ask(self.control, message.SignalRequest(number), deadline=self.sandbox.deadlines.stop)

    def make_exec(self, identifier: str, names: Names, process: Mapping[str, Any]) -> Process:
        return AppExec(self, identifier, names, process)


class AppExec(Process):
    """A process beside the workload, if the owner lets the host have it."""

    def __init__(self, container: AppContainer, identifier: str, names: Names, process: Mapping[str, Any]) -> None:
        super().__init__(container.id, identifier, names)
        self._owner = container
        # Boot init's ids are its own: containerd's may be longer.
        self._inner = shorten(identifier)
        user, groups = workloads.read_user(process.get("user") or {})
        del groups  # boot init gives an exec the groups of its user in the image
        try:
            size = process.get("consoleSize") or {}
            self._request = message.ExecRequest(
                id=self._inner,
                args=tuple(map(str, process["args"])),
                env=tuple(map(str, process.get("env") or ())),
                cwd=str(process.get("cwd") or "") or None,
                user=None if user == container.workload.user else user,
                terminal=names.terminal,
                rows=int(size.get("height") or 0),
                columns=int(size.get("width") or 0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError("usage", "the exec's specification cannot be read") from error
        self._connection: ControlConnection | None = None

    def start(self) -> None:
        sandbox = self._owner.sandbox
        deadline = sandbox.deadlines.app_start
        streams = self.streams = sandbox.open_streams(self.names)
        connection = ControlConnection(self._owner.control, deadline=deadline)
        try:
            stdio = streams.stdio
            connection.send(self._request, () if self.names.terminal else (stdio.stdin, stdio.stdout, stdio.stderr))
            reply, descriptors = connection.receive(deadline=deadline)
            if not isinstance(reply, message.Started):
                raise PeerError("malformed", "boot init did not say that the command runs")
            if descriptors:
                streams.attach(descriptors[0])
            self.pid = sandbox.find_pid(self._owner, reply.pid)
        except BaseException:
            connection.close()
            streams.release()
            self.close_streams()
            raise
        streams.release()
        self._connection = connection
        sandbox.reaper.watch(connection.fileno(), self._on_reply)

    def kill(self, number: int) -> None:
        self.require_alive()
        if self.state is not State.RUNNING:
            raise UsageError("wrong-state", "the exec does not run yet")
        request = message.SignalRequest(number, target=self._inner)
        try:
            control_client.ask(self._owner.control, request, deadline=self._owner.sandbox.deadlines.stop)
        except EnclaveCcError as error:
            if error.code in ("wrong-state", "app-died"):
                raise UsageError("not-found", f"process {foreign(self.id)} has ended already") from error
            raise

    def _on_reply(self) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None  # noqa: S101 - it is watched
        status = KILLED_EXIT  # boot init is gone, and with it whatever ran beside it
        with suppress(EnclaveCcError):
            reply, _ = connection.receive(deadline=1.0)
            if isinstance(reply, message.Exited):
                status = reply.exit_code
        connection.close()
        if self.names.terminal:
            threading.Thread(target=self.close_streams, name="drain", daemon=True).start()
        self._owner.exec_ended(self, status)


def _poll_process(running: Running, seconds: float) -> None:
    poll = select.poll()
    poll.register(running.pidfd, select.POLLIN)
    if poll.poll(seconds * 1000):
        time.sleep(seconds)  # dead; the reaper will say so
