"""One pod: its directory, its sandbox (pause, agent enclave) and its app enclaves. The engine knows no command line.

Each step is in the journal before it is done. Methods may be called from several threads where they say so; nothing
here waits without a deadline.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError, explain_os_error
from enclave_cc.host.sandbox import cgroups, directories, init_data, network, records, spec, takedown
from enclave_cc.host.sandbox.bundle import Bundle, read_bundle
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories, PodLock
from enclave_cc.host.sandbox.journal import Journal, Kind
from enclave_cc.host.sandbox.runc import Runc, Stdio, become_subreaper
from enclave_cc.host.sandbox.states import FINAL, Event, State, advance
from enclave_cc.record import field, record
from enclave_cc.simulator import listener


@record(kw_only=True)
class PodOptions:
    """`name`: unique on the node, the id when empty. `remove`: nothing is kept after the end.

    `identifier`: 16 hex digits, for a caller that must find the pod again; a new one when empty. `systemd`: control
    groups are systemd's.
    """

    name: str = ""
    network: str = "host"
    hostname: str = ""
    remove: bool = False
    identifier: str = ""
    systemd: bool = False


@record(kw_only=True)
class AppOptions:
    """What the host decides of one app container. `description` goes into the record, for people.

    `foundation` and `generated` (file name to source) come from a container manager, instead of what we would choose.
    """

    container: str
    image: str
    hostname: str
    volumes: tuple[spec.Volume, ...] = ()
    resources: spec.Resources = field(default_factory=spec.Resources)
    description: Mapping[str, object] = field(default_factory=dict)
    foundation: spec.Foundation | None = None
    generated: Mapping[str, Path] | None = None


@record
class Running:
    """A container's init: `pidfd` becomes readable when it ends; the pid is our child's and stays until waited for."""

    container: str
    pid: int
    pidfd: int


if TYPE_CHECKING:
    from enclave_cc.host.sandbox.enclaves import SimulatedEnclaves


class Enclaves(Protocol):
    """The platform of one pod: which enclaves run, and their instructions. `enclaves.SimulatedEnclaves` is one in this
    process. Any thread may call it.
    """

    def launch(self, container: str, bundle: Bundle, *, group: str, config_id: bytes = bytes(64)) -> None:
        """Measures the bundle and launches it. `group`: the container's control group. Raises coded errors."""

    def start(self, listener: socket.socket) -> None:
        """Answers from now on what comes at this socket, which is its own then. Raises `EnvironmentFault`."""

    def forget(self, container: str) -> None: ...

    def close(self) -> None: ...


class Pod:
    """A live pod of this process. Made by `create`, ended by `finish`."""

    def __init__(self, configuration: Configuration, identifier: str, lock: PodLock, options: PodOptions) -> None:
        self.configuration = configuration
        self.id = identifier
        self.options = options
        self.places = Directories.of(configuration)
        self.directory = self.places.pods / identifier
        self.sockets = self.directory / "run"
        self.runc = Runc(configuration.runc, self.places.runc, deadline=configuration.deadlines.runc, systemd=options.systemd)
        self.addresses: list[str] = []
        self._lock = lock
        self._journal: Journal | None = None
        self._enclaves: Enclaves | None = None
        self._listener: socket.socket | None = None
        self._guard = threading.Lock()
        self._bundle_guard = threading.Lock()
        self._bundles: dict[str, Bundle] = {}
        self._running: list[Running] = []
        self._groups: dict[str, str] = {}  # container to its control group
        self._killed = False
        self._record: dict[str, Any] = {}

    @classmethod
    def create(cls, configuration: Configuration, options: PodOptions) -> Pod:
        """Claims id and name, makes the directory. Raises `UsageError`, `EnvironmentFault`; then nothing is left."""
        if configuration.tee != "simulated":
            raise EnvironmentFault("tee-refused", f"the platform is {configuration.tee!r}")
        if shutil.which(configuration.runc) is None:  # said before anything is made
            raise EnvironmentFault("missing-tool", f"{configuration.runc} is not installed")
        become_subreaper()
        places = Directories.of(configuration)
        try:
            places.prepare()
            if options.identifier:
                identifier, lock = options.identifier, directories.claim(places, options.identifier)
            else:
                identifier, lock = directories.claim_id(places)
        except OSError as error:
            raise explain_os_error(error, f"the directories below {configuration.run} and {configuration.state}") from error
        pod = cls(configuration, identifier, lock, options)
        try:
            if options.identifier and pod.directory.exists():
                from enclave_cc.host.sandbox.reconcile import take_down_dead  # left by a supervisor that was killed

                take_down_dead(configuration, identifier)
            pod._prepare()
        except BaseException as error:
            with suppress(EnclaveCcError):
                pod._take_down(keep=False)
            if isinstance(error, OSError):
                raise explain_os_error(error, f"the pod's directory {pod.directory}") from error
            raise
        return pod

    @property
    def state(self) -> State:
        return State(self._record["state"])

    @property
    def agent_socket(self) -> Path:
        return self.sockets / "agent.sock"

    def container_directory(self, container: str) -> Path:
        return self.directory / "c" / directories.shorten(container)

    def shared(self, container: str) -> Path:
        """The directory that boot init shares with us: control socket, status, log."""
        return self.container_directory(container) / "shared"

    def advance(self, event: Event, **members: object) -> None:
        """Moves the pod's state and writes it down. Raises `UsageError("wrong-state")`.

        On a full disk what others read stays behind; what runs, and its end, matter more. Only a start is refused.
        """
        with self._guard:
            self._record |= {"state": str(advance(self.state, event)), **members}
            try:
                directories.write_json(self.directory / "pod.json", self._record)
            except OSError as error:
                if event is Event.START:
                    raise explain_os_error(error, f"the pod's directory {self.directory}") from error

    # --- sandbox

    def serve_platform(
        self, apps: Sequence[str] = (), *, agent_group: str = "", make: Callable[[], Enclaves] | None = None
    ) -> None:
        """Launches the enclaves of the agent and of these app containers, then answers their instructions.

        Their containers may be started before or meanwhile: their questions wait. `agent_group`: the agent's control
        group if it is not ours to choose. `make`: the platform, if it is not to be in this process. Raises coded errors.
        """
        agent = f"{self.id}-agent"
        if agent_group:
            self._place(agent, agent_group)
        enclaves = make() if make is not None else self.make_enclaves()
        config_id = init_data.compute_config_id(init_data.write_init_data(self.configuration))
        enclaves.launch(agent, self.bundle("agent"), group=self.group_of(agent), config_id=config_id)
        for container in apps:
            enclaves.launch(container, self.bundle("app"), group=self.group_of(container))
        with self._guard:
            self._enclaves = enclaves
            served, self._listener = self._listener, None
        assert served is not None  # noqa: S101 - made with the pod's directory, and served once
        enclaves.start(served)

    def make_enclaves(self) -> SimulatedEnclaves:
        """The simulated platform in this process. Raises `EnvironmentFault`, `PeerError`."""
        from enclave_cc.host.sandbox.enclaves import SimulatedEnclaves  # 50 ms, while runc and the enclaves start

        return SimulatedEnclaves(self._find_container, self.places.simulator, self.sockets / "cpu.sock", self.places.measurements)

    def bundle(self, role: str) -> Bundle:
        """The installed bundle, read once. Raises `UsageError("not-found")`."""
        with self._bundle_guard:
            if role not in self._bundles:
                place = self.configuration.agent_bundle if role == "agent" else self.configuration.app_bundle
                self._bundles[role] = read_bundle(place, role)
            return self._bundles[role]

    def start_pause(self) -> Running:
        """Starts the container that holds what the pod's containers share, and attaches its network."""
        own_network = self.options.network == "pod"
        root = self.places.run / "pause"
        for path in (root / "pause", root / "proc", root / "dev"):
            path.mkdir(parents=True, exist_ok=True)
        (root / spec.PAUSE_PLACE.lstrip("/")).touch()
        if not spec.PAUSE_PROGRAM.exists():
            raise EnvironmentFault("missing-tool", f"{spec.PAUSE_PROGRAM} is missing", "apt-get install busybox-static")
        container = f"{self.id}-pause"
        hostname = self.options.hostname or self.id
        pause = self._start(container, lambda place: spec.make_pause(place, root, hostname=hostname, own_network=own_network), None)
        if own_network:
            netns = self.directory / "netns"
            self._note(Kind.NETWORK, container=container, netns=str(netns))
            network.hold(f"/proc/{pause.pid}/ns/net", netns)
            self.addresses = network.attach(self.configuration, container, str(netns))
        return pause

    def start_bundle(self, container: str, bundle: Path, stdio: Stdio, *, group: str) -> Running:
        """Creates a container from a bundle that somebody else made, as it is; `runc.start` lets it go."""
        place = cgroups.resolve(group)
        self._note(Kind.CONTAINER, id=container, group=place)
        return self._keep_running(container, self.runc.create(container, bundle, stdio), place)

    def note_mount(self, path: Path) -> None:
        """Call before something is mounted at `path` outside the pod's directory: it goes with the pod."""
        self._note(Kind.MOUNT, path=str(path))

    def start_agent(self, *, foundation: spec.Foundation | None = None, resolver: Path = Path("/etc/resolv.conf")) -> Running:
        """Starts the agent enclave; it listens on `agent_socket` later. Raises coded errors."""
        bundle = self.bundle("agent")
        document = init_data.write_init_data(self.configuration)
        (self.sockets / "initdata.toml").write_text(document)
        container = f"{self.id}-agent"
        log = os.open(self.directory / "agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        resources = spec.Resources(memory=self.configuration.limits.agent_memory)
        try:
            return self._start(
                container,
                lambda place: spec.make_agent(
                    place, bundle.root, bundle.entrypoint, bundle.environment, self.places.cache, resources, resolver
                ),
                Stdio(null, log, log),
                foundation,
            )
        finally:
            os.close(null)
            os.close(log)

    # --- containers

    def start_app(self, app: AppOptions, stdio: Stdio, *, pause: Running | None = None, handover_deadline: float) -> Running:
        """Starts the container of an app enclave; boot init waits for the agent to hand over. Raises coded errors.

        Its enclave is one that `serve_platform` launched, or `launch`.
        """
        bundle = self.bundle("app")
        for volume in app.volumes:
            if not volume.source.exists():
                raise UsageError("not-found", f"the volume's source {volume.source} does not exist", "Make it first.")
        directory = self.container_directory(app.container)
        for name in ("shared", "files"):
            (directory / name).mkdir(parents=True, exist_ok=True, mode=0o755)
        self.write_files(app)
        self._note(Kind.LEASE, path=str(self.places.leases / app.container))
        joined: str | Path = self.options.network
        if joined == "pod" and app.foundation is None:
            if pause is None:
                raise UsageError("wrong-state", "a container of a pod network needs the pause container")
            joined = Path(f"/proc/{pause.pid}/ns/net")
        extra = ["--container", app.container, "--handover-deadline", str(int(handover_deadline))]
        return self._start(
            app.container,
            lambda place: spec.make_app(
                place,
                bundle.root,
                [*bundle.entrypoint, *extra],
                bundle.environment,
                blobs=self.places.cache / "blobs",
                hostname=app.hostname,
                network=joined,
                volumes=app.volumes,
                resources=app.resources,
            ),
            stdio,
            app.foundation,
        )

    def write_files(self, app: AppOptions) -> None:
        """The files that the host generates for a container: name resolution follows its network."""
        files = self.container_directory(app.container) / "files"
        if app.generated is not None:
            for name, source in app.generated.items():
                try:
                    (files / name).write_bytes(source.read_bytes())
                except OSError as error:
                    raise UsageError("not-found", f"the generated file {source}: {error.strerror}") from error
            return
        hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        if self.options.network == "host":
            with suppress(OSError):
                hosts = Path("/etc/hosts").read_text()
        for address in self.addresses:
            hosts += f"{address.partition('/')[0]}\t{app.hostname}\n"
        if not self.addresses and app.hostname not in hosts.split():
            hosts += f"127.0.1.1\t{app.hostname}\n"
        resolver = ""
        if self.options.network != "none":
            with suppress(OSError):
                resolver = Path("/etc/resolv.conf").read_text()
        (files / "hosts").write_text(hosts)
        (files / "hostname").write_text(app.hostname + "\n")
        (files / "resolv.conf").write_text(resolver)

    def count_oom_kills(self, container: str) -> int:
        return cgroups.count_oom_kills_at(self.group_of(container))

    def group_of(self, container: str) -> str:
        """Its control group: the place in the hierarchy."""
        return self._groups.get(container) or cgroups.path_of(self.id, container)

    def list_processes(self, container: str) -> set[int]:
        return cgroups.list_processes_at(self.group_of(container))

    def remove_container(self, running: Running) -> None:
        """Takes one container away, killed if it runs; its init must be waited for by the caller. Raises `EnvironmentFault`."""
        self.runc.delete(running.container)
        group = self.group_of(running.container)
        if not cgroups.remove_at(group, deadline=self.configuration.deadlines.remove):
            raise EnvironmentFault("environment", f"the control group {group} is still in use")
        with self._guard:
            if running in self._running:
                self._running.remove(running)
                os.close(running.pidfd)
            self._groups.pop(running.container, None)
            enclaves = self._enclaves
        if enclaves is not None:
            enclaves.forget(running.container)
        (self.places.leases / running.container).unlink(missing_ok=True)
        directory = self.container_directory(running.container)
        if directory.exists():
            takedown.remove_directory(directory)

    def wait_exit(self, running: Running) -> int:
        """Exit code of an init whose pidfd is readable; 128 + n when a signal ended it."""
        status = os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1])
        return 128 - status if status < 0 else status

    # --- end

    def kill(self) -> None:
        """Kills every process of the pod and lets no container start any more. Any thread may call it."""
        with self._guard:
            self._killed = True
            groups = list(self._groups.values())
        for pid in cgroups.list_processes(self.id).union(*map(cgroups.list_processes_at, groups)):
            with suppress(OSError):
                os.kill(pid, 9)

    def finish(self, event: Event, *, exit_code: int | None = None, error: EnclaveCcError | None = None) -> None:
        """Takes the pod down and keeps its record, unless it is one of those that leave nothing. Raises `EnvironmentFault`."""
        if self.state not in FINAL:
            told = error.to_json() if error is not None else None
            self.advance(event, exit_code=exit_code, error=told, finished=time.time())
        self._take_down(keep=not self.options.remove)

    def disown(self) -> None:
        """After a fork, in the process that is not the supervisor."""
        self._lock.release(remove=False)

    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o700)
        for path in (self.sockets, self.directory / "c"):
            path.mkdir()
        for name in ("container", "files", "volumes"):  # mount points of app containers
            (self.sockets / name).mkdir()
        self._journal = Journal(self.directory / "journal")
        name = self.options.name or self.id
        self._record = {
            "id": self.id,
            "name": name,
            "state": str(State.CREATED),
            "created": time.time(),
            "supervisor": os.getpid(),
            "network": self.options.network,
            "remove": self.options.remove,
            "platform": self.configuration.tee,
        }
        directories.write_json(self.directory / "pod.json", self._record)
        if name != self.id:
            # Claimed before it is noted: undoing a claim that failed would take another pod's name.
            link = directories.claim_name(self.places, name, self.id)
            self._note(Kind.NAME, path=str(link))
        self._note(Kind.CGROUP)
        # Listening before it is served: an enclave that asks early waits instead of failing.
        self._listener = listener.listen(self.sockets / "cpu.sock")

    def launch(self, container: str, *, group: str) -> None:
        """Launches one more app enclave, for a container that is started next in this control group. Raises coded errors."""
        if self._enclaves is None:
            raise UsageError("wrong-state", "the platform is not served yet")
        place = self._place(container, group)
        self._enclaves.launch(container, self.bundle("app"), group=place)

    def _place(self, container: str, group: str) -> str:
        """Notes where a container will be: its first question may come before `runc run` has returned."""
        place = cgroups.resolve(group)
        with self._guard:
            self._groups[container] = place
        return place

    def _start(
        self,
        container: str,
        make: Callable[[spec.Place], dict[str, Any]],
        stdio: Stdio | None,
        foundation: spec.Foundation | None = None,
    ) -> Running:
        directory = self.container_directory(container)
        directory.mkdir(exist_ok=True, mode=0o700)
        made = make(spec.Place(self.id, container, directory, self.sockets))
        group = None
        if foundation is None:
            self._note(Kind.CONTAINER, id=container)
        else:
            foundation.put(made)
            group = self._place(container, foundation.group)
            self._note(Kind.CONTAINER, id=container, group=group)
        (directory / "config.json").write_text(json.dumps(made))
        if self.is_killed():
            raise EnvironmentFault("app-died", "the pod was stopped while it started")
        return self._keep_running(container, self.runc.run(container, directory, stdio), group)

    def _find_container(self, pid: int) -> str | None:
        """Which container of this pod a process is in: its control group tells."""
        with self._guard:
            groups = dict(self._groups)
        if groups:
            place = cgroups.find_place(pid, groups.values())
            found = next((name for name, group in groups.items() if group == place), None)
            if found is not None:
                return found
        ours = cgroups.find_container(pid)
        return ours[1] if ours is not None and ours[0] == self.id else None

    def _keep_running(self, container: str, pid: int, group: str | None) -> Running:
        try:
            running = Running(container, pid, os.pidfd_open(pid))
        except ProcessLookupError as error:
            raise EnvironmentFault("app-died", f"container {container} ended at once and left no status") from error
        with self._guard:
            self._running.append(running)
            if group is not None:
                self._groups[container] = group
        if self.is_killed():  # between the two looks
            self.kill()
        return running

    def is_killed(self) -> bool:
        with self._guard:
            return self._killed

    def _note(self, kind: Kind, **details: str) -> None:
        if self._journal is not None:
            self._journal.note(kind, **details)

    def _take_down(self, *, keep: bool) -> None:
        if self._enclaves is not None:
            self._enclaves.close()
        if self._listener is not None:
            self._listener.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self.directory.exists():
            takedown.undo(self.configuration, self.id, self.directory, keep_name=keep)
            if keep:
                records.keep(self.configuration, self.directory, self._record)
            takedown.remove_directory(self.directory)
        for running in self._running:
            os.close(running.pidfd)
            with suppress(ChildProcessError):
                os.waitpid(running.pid, os.WNOHANG)
        self._running = []
        self._lock.release(remove=True)
