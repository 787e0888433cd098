"""What an OCI specification may ask for that no enclave gets: refused, for what is dropped in silence is missed too late.

The table in docs/guides/containerd.md lists every member of the specification. Source: OCI runtime-spec 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.errors import PeerError, foreign

_NODE = "a program of the node has no place in an enclave"
_UMASK = 0o022
# By path of members; what is none, null or empty asks for nothing.
_MEMBERS = {
    "hooks": _NODE,
    "domainname": "the pod's UTS namespace has a host name only",
    "process.selinuxLabel": "an enclave's processes get no label of the node's",
    "process.scheduler": "an enclave's scheduling is the kernel's default",
    "process.ioPriority": "an enclave's scheduling is the kernel's default",
    "process.execCPUAffinity": "an enclave's scheduling is the kernel's default",
    "linux.devices": "a device of the node would see into the enclave's memory, or be seen into",
    "linux.netDevices": "a network device cannot be moved into an enclave",
    "linux.uidMappings": "user namespaces are not supported",
    "linux.gidMappings": "user namespaces are not supported",
    "linux.timeOffsets": "time namespaces are not supported",
    "linux.personality": "the personality is the bundle's",
    "linux.memoryPolicy": "the memory policy is the kernel's default",
    "linux.mountLabel": "an enclave's files get no label of the node's",
    "linux.intelRdt": "cache and bandwidth classes are not supported",
    "linux.seccomp.listenerPath": _NODE,
}
# AppArmor's profile confines a container against the node. Boot init must mount, which containerd's default forbids.
_PROFILES = frozenset({"", "unconfined", "cri-containerd.apparmor.d", "docker-default"})
_PROPAGATION = frozenset({"shared", "rshared", "slave", "rslave"})
_MAPPED = frozenset({"idmap", "ridmap"})


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raises `PeerError("launch-failed")` for the first member that cannot hold."""
    for path, why in _MEMBERS.items():
        if _find(spec, path):
            _refuse(path, why)
    process = spec["process"]
    profile = str(process.get("apparmorProfile") or "")
    if profile not in _PROFILES:
        _refuse("process.apparmorProfile", f"the profile {foreign(profile)} would confine what builds the container")
    if (process.get("user") or {}).get("umask") not in (None, _UMASK):
        _refuse("process.user.umask", "a workload starts with 022")
    if spec["linux"].get("rootfsPropagation") in _PROPAGATION:
        _refuse("linux.rootfsPropagation", "mounts do not propagate into an enclave, nor out of it")
    _check_capabilities(process)


def check_mount(mount: Mapping[str, Any]) -> None:
    """Raises `PeerError("launch-failed")` for what a mount of an enclave cannot be."""
    place, options = foreign(mount.get("destination")), set(map(str, mount.get("options") or ()))
    if options & _PROPAGATION:
        _refuse(f"the mount at {place}", "mounts do not propagate into an enclave, nor out of it")
    if options & _MAPPED or mount.get("uidMappings") or mount.get("gidMappings"):
        _refuse(f"the mount at {place}", "ids are not mapped")


def _check_capabilities(process: Mapping[str, Any]) -> None:
    """One set for root: what bounds it is what it has. (Others have none of them, but what is ambient.)"""
    sets = process.get("capabilities") or {}
    bounding = set(sets.get("bounding") or ())
    if (process.get("user") or {}).get("uid"):
        return
    for kind in ("permitted", "effective"):
        if set(sets.get(kind) or ()) != bounding:
            _refuse(f"process.capabilities.{kind}", "it differs from the bounding set; a workload of root's has one set")


def _find(spec: Mapping[str, Any], path: str) -> Any:
    found: Any = spec
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return any(found.values()) if isinstance(found, Mapping) and path == "hooks" else found


def _refuse(member: str, why: str) -> None:
    raise PeerError("launch-failed", f"{member} of the specification: {why}", "Take it out of the pod's specification.")
