"""The node's configuration: one TOML file, checked as a whole before anything is done with it.

All of it is host-authored and none of it is trusted by an enclave: what matters to the data owner (KBS, registry) is
handed to the agent as init-data, whose hash the quote carries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enclave_cc.errors import UsageError, foreign
from enclave_cc.record import field, fields, record

DEFAULT_FILE = Path("/etc/enclave-cc/config.toml")
_SUBNET = "10.88.77.0/24"
TEES = ("refuse", "simulated")
NETWORKS = ("host", "none", "pod")
# Longest name below a pod's directory that a Unix socket is bound to; see unix(7): 108 bytes with the closing NUL.
_SOCKET_TAIL = len("/pods/0123456789abcdef/c/0123456789abcdef/shared/control.sock")
_SOCKET_LIMIT = 107


@record
class Deadlines:
    """Seconds. Every wait of the engine ends by one of these."""

    agent_start: float = 30.0
    pull: float = 3600.0
    app_start: float = 60.0
    stop: float = 10.0
    runc: float = 30.0
    network: float = 30.0
    remove: float = 30.0
    kbs: float = 10.0
    event: float = 60.0  # the shim's own, towards containerd, from here on
    stream: float = 1.0
    end: float = 5.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 7 * 86400:
                raise UsageError("bad-config", f"[deadlines] {item.name} is not a number of seconds up to a week")


@record
class Limits:
    """Bytes, CPUs and counts; 0 means unlimited."""

    log_bytes: int = 64 << 20
    cache_bytes: int = 0
    processes: int = 0
    agent_memory: int = 0
    failures_kept: int = 20

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not int or value < 0:
                raise UsageError("bad-config", f"[limits] {item.name} is not a number of at least 0")


@record
class Network:
    """`default`: what `run` uses; `agent`: where the agent of a containerd pod is, in the pod's network or the node's; the
    rest is the bridge of `--network pod`.
    """

    default: str = "host"
    agent: str = "pod"
    cni_path: Path = Path("/usr/lib/cni")
    bridge: str = "enclave-cc0"
    subnet: str = _SUBNET

    def __post_init__(self) -> None:
        if self.default not in NETWORKS:
            raise UsageError("bad-config", f"[network] default is none of {', '.join(NETWORKS)}")
        if self.agent not in ("pod", "host"):
            raise UsageError("bad-config", "[network] agent is none of pod, host")
        try:
            if not isinstance(self.subnet, str):
                raise TypeError("no text")
            if self.subnet != _SUBNET:
                import ipaddress  # 4 ms of every start

                ipaddress.ip_network(self.subnet)
        except (TypeError, ValueError) as error:
            raise UsageError("bad-config", "[network] subnet is not a network in CIDR form") from error
        if not isinstance(self.bridge, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", self.bridge):
            raise UsageError("bad-config", "[network] bridge is not an interface name")


@record
class Configuration:
    """Everything that the node's engine is told. `source` is where it was read from, for messages."""

    state: Path = Path("/var/lib/enclave-cc")
    run: Path = Path("/run/enclave-cc")
    agent_bundle: Path = Path("/var/lib/enclave-cc/bundles/agent")
    app_bundle: Path = Path("/var/lib/enclave-cc/bundles/app")
    tee: str = "refuse"
    kbs_url: str = ""
    kbs_certificate: Path | None = None
    registry_insecure: tuple[str, ...] = ()
    registry_ca: Path | None = None
    runc: str = "runc"
    containerd_root: Path = Path("/var/lib/containerd")
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: Limits = field(default_factory=Limits)
    network: Network = field(default_factory=Network)
    source: str = "built-in defaults"

    def __post_init__(self) -> None:
        for name in ("state", "run", "agent_bundle", "app_bundle", "containerd_root"):
            if not getattr(self, name).is_absolute():
                raise UsageError("bad-config", f"{self.source}: the path {name} is not absolute")
        if self.tee not in TEES:
            raise UsageError("bad-config", f"{self.source}: [platform] tee is none of {', '.join(TEES)}")
        if len(os.fsencode(self.run)) + _SOCKET_TAIL > _SOCKET_LIMIT:
            raise UsageError("bad-config", f"{self.source}: [paths] run is too long; Unix sockets lie below it")


def find_file(named: str | None) -> Path | None:
    """The file asked for (`--config`, ENCLAVE_CC_CONFIG), else the node's if there is one."""
    chosen = named or os.environ.get("ENCLAVE_CC_CONFIG")
    if chosen:
        return Path(chosen)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load(named: str | None = None) -> Configuration:
    """Raises `UsageError("bad-config")` for a file that cannot be read or has a member this program does not know."""
    path = find_file(named)
    if path is None:
        return Configuration()
    try:
        about = path.stat()
        key = (str(path), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        if key not in _loaded:
            import tomllib

            _loaded[key] = parse(tomllib.loads(path.read_text()), str(path))
    except OSError as error:
        raise UsageError("bad-config", f"{path}: {error.strerror}") from error
    except ValueError as error:  # tomllib's and Unicode's
        raise UsageError("bad-config", f"{path}: {foreign(error)}") from error
    return _loaded[key]


# Files that were read, by their state then: the fork server hands what it has read on to its forks.
_loaded: dict[tuple[str, int, int, int, int, int], Configuration] = {}


_SECTIONS = {
    "paths": {"state", "run"},
    "bundles": {"agent", "app"},
    "platform": {"tee"},
    "kbs": {"url", "certificate"},
    "registry": {"insecure", "ca"},
    "runtime": {"runc"},
    "containerd": {"root"},
    "deadlines": {item.name for item in fields(Deadlines)},
    "limits": {item.name for item in fields(Limits)},
    "network": {item.name for item in fields(Network)},
}


def parse(document: Mapping[str, Any], source: str) -> Configuration:
    """Raises `UsageError("bad-config")`; an unknown member is an error, since it may have been meant."""
    for section, members in document.items():
        if section not in _SECTIONS or not isinstance(members, dict):
            raise UsageError("bad-config", f"{source}: there is no section [{foreign(section)}]")
        unknown = set(members) - _SECTIONS[section]
        if unknown:
            raise UsageError("bad-config", f"{source}: [{section}] has no member {foreign(min(unknown))}")

    def text(section: str, name: str, default: str = "") -> str:
        value = document.get(section, {}).get(name, default)
        if not isinstance(value, str):
            raise UsageError("bad-config", f"{source}: [{section}] {name} is not a text")
        return value

    insecure = document.get("registry", {}).get("insecure", [])
    if not isinstance(insecure, list) or not all(isinstance(host, str) for host in insecure):
        raise UsageError("bad-config", f"{source}: [registry] insecure is not a list of hosts")
    state = Path(text("paths", "state", "/var/lib/enclave-cc"))
    if text("kbs", "url") and not text("kbs", "url").startswith("https://"):
        raise UsageError("bad-config", f"{source}: [kbs] url does not begin with https://")
    certificate, authority = text("kbs", "certificate"), text("registry", "ca")
    network = dict(document.get("network", {}))
    network["cni_path"] = Path(text("network", "cni_path", "/usr/lib/cni"))
    try:
        deadlines = Deadlines(**document.get("deadlines", {}))
        limits = Limits(**document.get("limits", {}))
        checked = Network(**network)
    except UsageError as error:
        raise UsageError(error.code, f"{source}: {error.what}") from error
    return Configuration(
        state=state,
        run=Path(text("paths", "run", "/run/enclave-cc")),
        agent_bundle=Path(text("bundles", "agent", str(state / "bundles/agent"))),
        app_bundle=Path(text("bundles", "app", str(state / "bundles/app"))),
        tee=text("platform", "tee", "refuse"),
        kbs_url=text("kbs", "url"),
        kbs_certificate=Path(certificate) if certificate else None,
        registry_insecure=tuple(insecure),
        registry_ca=Path(authority) if authority else None,
        runc=text("runtime", "runc", "runc"),
        containerd_root=Path(text("containerd", "root", "/var/lib/containerd")),
        deadlines=deadlines,
        limits=limits,
        network=checked,
        source=source,
    )
