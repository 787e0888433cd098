"""One pod: its engine, its agent, and the containers that containerd made in it."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError, foreign
from enclave_cc.host.sandbox import cgroups
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import shorten
from enclave_cc.host.sandbox.pod import AppOptions, Pod, PodOptions, Running
from enclave_cc.host.sandbox.runc import Runc, Stdio
from enclave_cc.host.sandbox.spec import Foundation
from enclave_cc.host.sandbox.states import Event as PodEvent
from enclave_cc.host.shim import mounts
from enclave_cc.host.shim import workload as workloads
from enclave_cc.host.shim.containers import Asked, Container, PauseContainer
from enclave_cc.host.shim.enclaves import SleepingEnclaves
from enclave_cc.host.shim.events import Publisher
from enclave_cc.host.shim.log import Log
from enclave_cc.host.shim.processes import KILLED_EXIT
from enclave_cc.host.shim.reaper import Reaper
from enclave_cc.host.shim.states import State
from enclave_cc.host.shim.stdio import Names, Streams
from enclave_cc.host.shim.workload import Workload

if TYPE_CHECKING:
    from enclave_cc.host.sandbox.agent_client import AgentClient

_CONTAINER_ID = 64  # as CRI makes them; they are unique on the node as they are


def pod_id(namespace: str, group: str) -> str:
    """The engine's id of a pod, which a later process finds again."""
    return shorten(f"{namespace}/{group}")


def runc_id(namespace: str, identifier: str) -> str:
    """A container's id in runc's root and in the agent, where namespaces are not told apart."""
    if len(identifier) == _CONTAINER_ID and set(identifier) <= set("0123456789abcdef"):
        return identifier
    return shorten(f"{namespace}/{identifier}")


def choose_oom_score(own: str) -> int:
    """An agent's, from the shim's /proc/self/oom_score_adj: containerd and what it starts are all but exempt from being killed
    for memory, which what reads hostile images must not be. A node's own choice above 0 counts.
    """
    return max(0, int(own))


class Sandbox:
    """`group`: containerd's id of the pod (its sandbox's, or a lone task's own)."""

    def __init__(
        self, configuration: Configuration, namespace: str, group: str, publisher: Publisher, reaper: Reaper, log: Log
    ) -> None:
        self.configuration = configuration
        self.deadlines = configuration.deadlines
        self.namespace = namespace
        self.group = group
        self.publisher = publisher
        self.reaper = reaper
        self.log = log
        self._guard = threading.Lock()
        self._containers: dict[str, Container] = {}
        self._pod: Pod | None = None
        self._foundation: Foundation | None = None
        self._resolver = Path("/etc/resolv.conf")
        self._agent: AgentClient | None = None
        self._agent_process: Running | None = None
        self._agent_dead = False
        self._steps: list[threading.Thread] = []
        self._failure: EnclaveCcError | None = None

    @property
    def pod(self) -> Pod:
        if self._pod is None:
            raise UsageError("wrong-state", "the pod is not made yet")
        return self._pod

    @property
    def runc(self) -> Runc:
        return self.pod.runc

    # --- containers

    def create(self, asked: Asked, *, systemd: bool = False) -> Container:
        """Raises coded errors; then nothing of the container is left."""
        group = workloads.group_of(asked.spec, asked.id)
        if group != self.group:  # its journal is not ours: what we undid would be another pod's
            raise UsageError("usage", f"the task {foreign(asked.id)} is of pod {foreign(group)}, and this is the shim of another")
        identifier = runc_id(self.namespace, asked.id)
        container: Container
        if workloads.is_sandbox(asked.spec):
            container = PauseContainer(self, asked, identifier)
        else:
            from enclave_cc.host.shim.app_container import AppContainer  # not for the sandbox alone

            container = AppContainer(self, asked, identifier)
        with self._guard:
            if asked.id in self._containers:
                raise UsageError("already-exists", f"there is a task {foreign(asked.id)}")
            if self._containers and self._pod is None:
                raise UsageError("wrong-state", "the sandbox is being made")
            first = self._pod is None
            self._containers[asked.id] = container
        try:
            if first:
                self._open(asked, systemd=systemd)
            container.create()
            if first:
                self._join()
        except BaseException:
            with self._guard:
                self._containers.pop(asked.id, None)
            if first:
                self.close()
            container.end_unmade()
            raise
        return container

    def find(self, identifier: str) -> Container:
        """Raises `UsageError("not-found")`."""
        with self._guard:
            container = self._containers.get(identifier)
        if container is None:
            raise UsageError("not-found", f"there is no task {foreign(identifier)}")
        return container

    def note_running(self, container: Container) -> None:
        """The pod runs, for those who list pods, once its first container does."""
        pod = self._pod
        if pod is not None and container.id == self.group:
            with suppress(UsageError):  # it is being taken down
                pod.advance(PodEvent.RUN)

    def is_empty(self) -> bool:
        with self._guard:
            return not self._containers

    def delete(self, identifier: str) -> Container:
        """Takes a container away; with the first of the pod goes the pod. Raises `UsageError("wrong-state")` while it runs."""
        container = self.find(identifier)
        if container.state in (State.RUNNING, State.PAUSED):
            raise UsageError("wrong-state", "the task still runs")
        if container.state in (State.CREATING, State.CREATED):
            container.kill(9)
        container.wait(self.deadlines.remove)
        container.close_streams()
        for entry in list(container.execs.values()):
            entry.close_streams()
        if identifier == self.group:
            self.close()
        elif container.running is not None:
            self.remove_app(container)
        with self._guard:
            self._containers.pop(identifier, None)
        return container

    def close(self) -> None:
        """Takes the pod down, whatever runs in it. Raises `EnvironmentFault` for what stays; it is tried again later."""
        with self._guard:
            pod, self._pod = self._pod, None
            agent, self._agent = self._agent, None
        if pod is None:
            return
        for container in list(self._containers.values()):
            if container.running is not None:
                self.reaper.forget(container.running.pidfd)
        if self._agent_process is not None:
            self.reaper.forget(self._agent_process.pidfd)
        pod.kill()
        if agent is not None:
            agent.close()
        for step in self._steps:
            step.join(self.deadlines.runc)
        pod.finish(PodEvent.EXIT)

    # --- the pod

    def _open(self, asked: Asked, *, systemd: bool) -> None:
        """Makes the pod and starts its agent beside what the caller does next."""
        group = str(asked.spec["linux"].get("cgroupsPath") or "")
        cgroups.resolve(group)
        agent_group = f"{group}-agent"
        given = {str(entry["type"]): str(entry.get("path") or "") for entry in asked.spec["linux"].get("namespaces") or []}
        network = given.get("network") or ""
        joined = {"network": network} if network and self.configuration.network.agent == "pod" else {}
        score = choose_oom_score(Path("/proc/self/oom_score_adj").read_text())
        self._foundation = Foundation(group=agent_group, joined=joined, oom_score=score)
        for mount in asked.spec.get("mounts") or []:
            if mount.get("destination") == "/etc/resolv.conf" and self.configuration.network.agent == "pod":
                self._resolver = Path(str(mount.get("source")))
        options = PodOptions(identifier=pod_id(self.namespace, self.group), remove=True, systemd=systemd)
        pod = Pod.create(self.configuration, options)
        with self._guard:
            self._pod = pod
        known_as = workloads.describe_pod(asked.spec, self.group)
        pod.advance(PodEvent.START, image=f"(containerd: {known_as})", container=asked.id, manager="containerd", managed=self.group)
        self._steps = [
            threading.Thread(target=self._guarded, args=(step,), name="pod", daemon=True)
            for step in (self._start_agent, self._serve_platform)
        ]
        for step in self._steps:
            step.start()

    def _start_agent(self) -> None:
        running = self.pod.start_agent(foundation=self._foundation, resolver=self._resolver)
        self._agent_process = running
        self.reaper.watch(running.pidfd, self._on_agent_exit)

    def _serve_platform(self) -> None:
        assert self._foundation is not None  # noqa: S101 - made before
        pod = self.pod
        pod.serve_platform(agent_group=self._foundation.group, make=lambda: SleepingEnclaves(pod, self.reaper))

    def _on_agent_exit(self) -> None:
        self._agent_dead = True
        running = self._agent_process
        if running is not None and self._pod is not None:
            status = self.pod.wait_exit(running)
            self.log.write("error", "the agent enclave ended; containers run on, new ones cannot start", status=status)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except EnclaveCcError as error:
            self._failure = self._failure or error
        except Exception as error:  # noqa: BLE001 - our bug; whoever waits for the pod is told
            self._failure = UsageError("internal", f"starting the pod: {type(error).__name__}: {foreign(error)}")

    def _join(self) -> None:
        """Until agent and platform are started. Raises the first error of them."""
        for step in self._steps:
            step.join()
        if self._failure is not None:
            raise self._failure

    def wait_agent(self, given_up: Callable[[], bool] = lambda: False) -> AgentClient:
        """The agent's client, once it listens, or the caller has `given_up`. Raises coded errors."""
        from enclave_cc.host.sandbox.agent_client import AgentClient

        with self._guard:
            if self._agent is None:
                self._agent = AgentClient(self.pod.agent_socket, deadline=self.deadlines.agent_start)
            agent = self._agent
        self._join()
        if self._agent_process is None or self._agent_dead:
            raise EnvironmentFault("agent-died", "the agent enclave of this pod has ended", "Make the pod anew.")
        agent.wait(self._agent_process.pidfd, deadline=self.deadlines.agent_start, given_up=given_up)
        return agent

    def is_agent_dead(self) -> bool:
        process = self._agent_process
        if process is None or self._agent_dead:
            return True
        poll = select.poll()
        poll.register(process.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def cancel_pull(self, container: str) -> None:
        agent = self._agent
        if agent is not None:
            with suppress(EnclaveCcError):
                agent.remove_container(container, deadline=self.deadlines.stop)

    # --- what containers need of it

    def open_streams(self, names: Names) -> Streams:
        deadlines = self.deadlines
        return Streams(names, container=self.group, namespace=self.namespace, deadline=deadlines.stop, meeting=deadlines.stream)

    def mount_rootfs(self, asked: Asked) -> None:
        if asked.rootfs:
            place = asked.bundle / "rootfs"
            self.pod.note_mount(place)
            mounts.mount_all(asked.rootfs, place)

    def start_bundle(self, container: Container, stdio: Stdio) -> Running:
        group = str(container.asked.spec["linux"]["cgroupsPath"])
        return self.pod.start_bundle(container.runc_id, container.asked.bundle, stdio, group=group)

    def start_app(self, container: Container, workload: Workload, stdio: Stdio) -> Running:
        """Starts the app enclave; its boot init waits for the agent."""
        self._steps[-1].join()  # the platform
        if self._failure is not None:
            raise self._failure
        self.pod.launch(container.runc_id, group=workload.foundation.group)
        app = AppOptions(
            container=container.runc_id,
            image=workload.image,
            hostname=workload.hostname,
            volumes=workload.volumes,
            foundation=workload.foundation,
            generated=workload.generated,
        )
        deadlines = self.deadlines
        handover = deadlines.agent_start + deadlines.pull + deadlines.app_start
        return self.pod.start_app(app, stdio, handover_deadline=handover)

    def remove_app(self, container: Container) -> None:
        """Takes one app enclave away, agent's part and runc's. Raises `EnvironmentFault` for what stays."""
        self.cancel_pull(container.runc_id)
        if container.running is not None:
            self.reaper.forget(container.running.pidfd)
            self.pod.remove_container(container.running)

    def execute(self, container: Container, process: Mapping[str, Any], stdio: Stdio) -> int:
        """One more process in the pause container."""
        directory = self.pod.container_directory(container.runc_id)
        directory.mkdir(exist_ok=True, mode=0o700)
        name = os.urandom(8).hex()
        file, pid_file = directory / f"{name}.json", directory / f"{name}.pid"
        try:
            file.write_text(json.dumps(process))
            return self.runc.execute(container.runc_id, file, stdio, pid_file=pid_file)
        finally:
            file.unlink(missing_ok=True)
            pid_file.unlink(missing_ok=True)

    def wait_exit(self, running: Running) -> int:
        pod = self._pod
        try:
            return pod.wait_exit(running) if pod is not None else KILLED_EXIT
        except ChildProcessError:  # taken by the pod's end
            return KILLED_EXIT

    def count_oom_kills(self, container: Container) -> int:
        pod = self._pod
        return pod.count_oom_kills(container.runc_id) if pod is not None else 0

    def group_of(self, container: Container) -> str:
        return self.pod.group_of(container.runc_id)

    def list_processes(self, container: Container) -> set[int]:
        return self.pod.list_processes(container.runc_id)

    def find_pid(self, container: Container, inner: int) -> int:
        """The node's pid of a process that has `inner` in boot init's PID namespace; `inner` when it has ended already."""
        for pid in self.list_processes(container):
            with suppress(OSError, IndexError, ValueError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("NSpid:"):
                        numbers = line.split()[1:]
                        # ours (perhaps deeper than the node's), boot init's, the workload's
                        if len(numbers) >= 3 and int(numbers[-2]) == inner:
                            return pid
        return inner

    def watch_memory(self, container: Container) -> None:
        """OOM kills are told when they happen, where the kernel tells; else when the container ends."""
        from enclave_cc.host.shim import oom

        with suppress(OSError, EnclaveCcError):
            oom.watch(self.group_of(container), self.reaper, container.note_oom)
