"""OCI runtime specifications (1.0.2) of the pod's containers: pause, agent and app.

Everything here is host-authored: it decides what an enclave can reach, never what it does. Root file systems are the
measured bundles, read-only, shared by all pods.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enclave_cc.host.sandbox import cgroups
from enclave_cc.record import field, record
from enclave_cc.wire.launch.limits import UNLIMITED, Rlimit

VERSION = "1.0.2"
PAUSE_PROGRAM = Path("/bin/busybox")
# busybox goes by the name it is called; the directory tells a process listing what it is for
PAUSE_PLACE = "/pause/sleep"
INSIDE = "/run/enclave-cc"
_MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware")

# linux/capability.h, by number
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
    "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
# Boot init mounts, makes devices, and hands out at most what container runtimes give by default.
_APP_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE", "SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "SYS_NICE", "IPC_LOCK",
    "DAC_READ_SEARCH",
)  # fmt: skip


@record
class Resources:
    """Limits of one container; 0 is none. `memory` in bytes, `cpus` in CPUs, `processes` as a count."""

    memory: int = 0
    cpus: float = 0.0
    processes: int = 0


_UNLIMITED = Resources()


@record
class Volume:
    """A host path that boot init may show at the destination the statement names; `name` is the agreed name."""

    name: str
    source: Path
    read_only: bool = False


@record(kw_only=True)
class Foundation:
    """What a container manager decided of a container's surroundings, in the place of what we would.

    `joined`: namespaces to join, by OCI type; `shared`: types of namespaces of the node's own; `group`: OCI
    `linux.cgroupsPath`; `resources`: OCI `linux.resources`; `capabilities`: what the workload is to have, as CAP_NAME, so
    that boot init can hand it on where the owner allows it; `separate`: types of further namespaces of its own; `sysctls`: of
    its namespaces; `rlimits`: what the workload is to have, which boot init may have to raise.
    """

    group: str
    joined: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    resources: Mapping[str, Any] = field(default_factory=dict)
    oom_score: int | None = None
    capabilities: tuple[str, ...] = ()
    separate: frozenset[str] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    rlimits: tuple[Rlimit, ...] = ()

    def put(self, spec: dict[str, Any]) -> None:
        """Changes a specification made here accordingly."""
        linux = spec["linux"]
        kept = [n for n in linux["namespaces"] if n["type"] not in self.shared and n["type"] not in self.joined]
        linux["namespaces"] = [
            *kept,
            *({"type": kind, "path": path} for kind, path in self.joined.items()),
            *({"type": kind} for kind in sorted(self.separate)),
        ]
        linux["cgroupsPath"] = self.group
        devices = linux["resources"]["devices"]
        linux["resources"] = {**self.resources, "devices": devices}
        granted = {name for name in self.capabilities if name.removeprefix("CAP_") in own_capabilities()}
        for kind, names in spec["process"]["capabilities"].items():
            spec["process"]["capabilities"][kind] = sorted(granted | set(names))
        if self.sysctls:
            linux["sysctl"] = dict(self.sysctls)
        raised = [found for limit in self.rlimits if (found := _raise_limit(limit)) is not None]
        if raised:
            spec["process"]["rlimits"] = raised
        if self.oom_score is not None:
            spec["process"]["oomScoreAdj"] = self.oom_score
        if "uts" in self.joined or "uts" in self.shared:
            del spec["hostname"]  # runc refuses to set the name of a namespace that is not the container's own


def _raise_limit(limit: Rlimit) -> dict[str, Any] | None:
    """Boot init's own limit: ours, with a ceiling under which it can give the workload what it is to have.

    Never a lower one: boot init and the server of its root file system need what they need.
    """
    number = getattr(resource, limit.name, None)
    if not isinstance(number, int):
        return None  # boot init will say so
    soft, hard = (UNLIMITED if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number))
    if limit.hard <= hard:
        return None
    return {"type": limit.name, "soft": soft, "hard": limit.hard}


@record
class Place:
    """Where a container stands: pod and container ids, its bundle directory and the pod's `run/` directory."""

    pod: str
    container: str
    directory: Path
    sockets: Path


@functools.cache
def own_capabilities() -> frozenset[str]:
    """What this process may hand on: runc fails on a capability that it does not have itself."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for number, name in enumerate(_CAPABILITIES) if bits >> number & 1)
    return frozenset()


def make_pause(place: Place, root: Path, *, hostname: str, own_network: bool) -> dict[str, Any]:
    """Holds the namespaces that the pod's containers share."""
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    if own_network:
        namespaces.append({"type": "network"})
    spec = _make(place, root, [PAUSE_PLACE, "2147483647"], {"PATH": "/bin"}, (), namespaces, hostname, Resources())
    spec["mounts"] = [_proc(), _bind(PAUSE_PROGRAM, PAUSE_PLACE)]
    spec["linux"]["maskedPaths"] = list(_MASKED)
    spec["process"]["noNewPrivileges"] = True
    return spec


def make_agent(
    place: Place,
    root: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    cache: Path,
    resources: Resources,
    resolver: Path = Path("/etc/resolv.conf"),
) -> dict[str, Any]:
    """The agent enclave: in the node's network, with the pod's sockets and the node's sealed cache."""
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    spec = _make(place, root, arguments, environment, (), namespaces, "agent", resources)
    spec["mounts"] = [
        _proc(),
        _tmpfs("/dev", "mode=755", "size=64k", "nosuid"),
        _tmpfs("/tmp", "mode=1777", "nosuid", "nodev", "noexec"),  # noqa: S108 - a path of the enclave
        _bind(place.sockets, INSIDE, read_only=False),
        _bind(cache, "/var/lib/enclave-cc/cache", read_only=False),
        *(
            _bind(source, name)
            for source, name in ((resolver, "/etc/resolv.conf"), (Path("/etc/hosts"), "/etc/hosts"))
            if source.is_file()
        ),
    ]
    spec["linux"]["maskedPaths"] = list(_MASKED)
    spec["process"]["noNewPrivileges"] = True
    return spec


def make_app(
    place: Place,
    root: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    blobs: Path,
    hostname: str,
    network: str | Path,
    volumes: Sequence[Volume] = (),
    resources: Resources = _UNLIMITED,
) -> dict[str, Any]:
    """The app enclave. `network` is "host", "none", or the path of a network namespace to join."""
    namespaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    if network == "none":
        namespaces.append({"type": "network"})
    elif network != "host":
        namespaces.append({"type": "network", "path": str(network)})
    spec = _make(place, root, arguments, environment, _APP_CAPABILITIES, namespaces, hostname, resources)
    spec["mounts"] = [
        _proc(),
        _tmpfs("/dev", "mode=755", "size=65536k", "nosuid", "strictatime"),
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]},
        _tmpfs("/run", "mode=755", "nosuid", "nodev", "size=65536k"),
        _tmpfs("/tmp", "mode=1777", "nosuid", "nodev"),  # noqa: S108 - a path of the enclave
        _bind(place.sockets, INSIDE),
        _bind(place.directory / "shared", f"{INSIDE}/container", read_only=False),
        _bind(place.directory / "files", f"{INSIDE}/files"),
        _bind(blobs, "/var/lib/enclave-cc/cache/blobs"),
    ]
    if volumes:
        spec["mounts"].append(_tmpfs(f"{INSIDE}/volumes", "mode=700", "size=64k", "nosuid", "nodev"))
        spec["mounts"] += [_bind(v.source, f"{INSIDE}/volumes/{v.name}", read_only=v.read_only, special=True) for v in volumes]
    fuse = {"type": "c", "major": 10, "minor": 229}
    spec["linux"]["devices"] = [{**fuse, "path": "/dev/fuse", "fileMode": 0o600, "uid": 0, "gid": 0}]
    spec["linux"]["resources"]["devices"].append({**fuse, "allow": True, "access": "rwm"})
    return spec


def _make(
    place: Place,
    root: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    capabilities: Sequence[str],
    namespaces: Sequence[Mapping[str, str]],
    hostname: str,
    resources: Resources,
) -> dict[str, Any]:
    granted = sorted(f"CAP_{name}" for name in set(capabilities) & own_capabilities())
    limits: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if resources.memory:
        limits["memory"] = {"limit": resources.memory}
    if resources.cpus:
        limits["cpu"] = {"period": 100_000, "quota": max(1000, int(resources.cpus * 100_000))}
    if resources.processes:
        limits["pids"] = {"limit": resources.processes}
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(arguments),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), granted),
            "noNewPrivileges": False,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": hostname,
        "mounts": [],
        "linux": {
            "namespaces": list(namespaces),
            "cgroupsPath": cgroups.path_of(place.pod, place.container),
            "resources": limits,
            "maskedPaths": [],
            "readonlyPaths": [],
        },
    }


def _proc() -> dict[str, Any]:
    return {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}


def _tmpfs(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def _bind(source: Path, destination: str, *, read_only: bool = True, special: bool = False) -> dict[str, Any]:
    """`special`: setuid bits and submounts of the source stay, as users expect of their volumes."""
    options = ["rbind" if special else "bind", "rprivate", "ro" if read_only else "rw"]
    if not special:
        options += ["nosuid", "nodev"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}
