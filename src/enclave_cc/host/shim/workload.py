"""From containerd's OCI specification of a container to what the engine starts and what the agent is asked for. Pure.

All of it is the host's word. What changes the workload goes into the overrides, which the agent weighs against the
owner's launch policy; what only bounds it (control group, resources, namespaces) into the foundation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.host.sandbox import image_user
from enclave_cc.host.sandbox.spec import Foundation, Volume
from enclave_cc.host.shim import mount_table, refusals
from enclave_cc.record import record
from enclave_cc.wire.launch import mounts
from enclave_cc.wire.launch.limits import Rlimit
from enclave_cc.wire.launch.overrides import Overrides

CONTAINER_TYPE = "io.kubernetes.cri.container-type"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
IMAGE_NAME = "io.kubernetes.cri.image-name"
CONTAINER_NAME = "io.kubernetes.cri.container-name"
# With `.CONTAINER` after it, it speaks of one container of the pod.
OWN_IMAGE = "enclave-cc.image"

_JOINED = ("network", "ipc", "uts")
_NAMESPACES = frozenset({"pid", "mount", "cgroup", *_JOINED})


@record
class Workload:
    """One container: `image` as it is pulled, and the host's and the enclave's side of its start. `console`: rows and columns
    of its terminal, 0 where nothing is said.
    """

    image: str
    hostname: str
    overrides: Overrides
    foundation: Foundation
    volumes: tuple[Volume, ...]
    generated: Mapping[str, Path]
    user: str | None
    console: tuple[int, int]


def is_sandbox(spec: Mapping[str, Any]) -> bool:
    return annotations_of(spec).get(CONTAINER_TYPE) == "sandbox"


def annotations_of(spec: Mapping[str, Any]) -> Mapping[str, str]:
    found = spec.get("annotations") or {}
    return found if isinstance(found, dict) else {}


def group_of(spec: Mapping[str, Any], identifier: str) -> str:
    """The id of the pod that a container belongs to: its own when no other is named."""
    return annotations_of(spec).get(SANDBOX_ID) or identifier


def describe_pod(spec: Mapping[str, Any], group: str) -> str:
    """What people call the pod: NAMESPACE/NAME, or containerd's id where Kubernetes gave none."""
    annotations = annotations_of(spec)
    names = [annotations.get(f"io.kubernetes.cri.sandbox-{kind}") for kind in ("namespace", "name")]
    return "/".join(map(str, names)) if all(names) else group


def find_image(annotations: Mapping[str, str]) -> str:
    """Raises `UsageError` when none is named."""
    image = _find_own_image(annotations) or annotations.get(IMAGE_NAME)
    if not image:
        raise UsageError("bad-reference", f"no annotation names the image: {OWN_IMAGE} or {IMAGE_NAME}")
    return image


def names_own_image(annotations: Mapping[str, str]) -> bool:
    """Whether the image is named by the pod, and not by containerd for it."""
    return _find_own_image(annotations) is not None


def _find_own_image(annotations: Mapping[str, str]) -> str | None:
    return annotations.get(f"{OWN_IMAGE}.{annotations.get(CONTAINER_NAME)}") or annotations.get(OWN_IMAGE) or None


def translate(spec: Mapping[str, Any], *, terminal: bool, stdin: bool = False) -> Workload:
    """Raises `UsageError`, `PeerError` for what cannot hold in an enclave."""
    try:
        return _translate(spec, terminal=terminal, stdin=stdin)
    except PeerError as error:
        if error.code != "malformed":
            raise
        # The agent would call it that too; here it is what the pod's author asked for.
        raise PeerError("launch-failed", error.what, "Change the container's specification.") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            "usage", f"the container's specification cannot be read: {type(error).__name__} {foreign(error)}"
        ) from error


def make_foundation(spec: Mapping[str, Any], group: str) -> Foundation:
    """Namespaces, control group and limits of the container of `spec`. Raises `PeerError("launch-failed")`.

    1. the process namespace is the container's own: another's could be seen, and signalled, from there
    2. so are the mounts, and the control groups where they have a namespace; other namespaces are not supported
    """
    linux = spec["linux"]
    given = {str(entry["type"]): str(entry.get("path") or "") for entry in linux.get("namespaces") or []}
    # 1
    if "pid" not in given or given["pid"]:
        raise PeerError(
            "launch-failed",
            "a process namespace shared with other containers or the node cannot hold across enclaves",
            "Unset shareProcessNamespace and hostPID.",
        )
    # 2
    if given.get("mount") or given.get("cgroup") or set(given) - _NAMESPACES:
        raise PeerError(
            "launch-failed",
            f"an enclave has mounts and control groups of its own, and no namespace but {', '.join(sorted(_NAMESPACES))}",
        )
    resources = {name: value for name, value in (linux.get("resources") or {}).items() if name != "devices"}
    return Foundation(
        group=group,
        joined={kind: given[kind] for kind in _JOINED if given.get(kind)},
        shared=frozenset(kind for kind in _JOINED if kind not in given),
        resources=resources,
        oom_score=spec["process"].get("oomScoreAdj"),
        capabilities=read_capabilities(spec["process"]),
        separate=frozenset(kind for kind in ("cgroup", "network") if given.get(kind) == ""),
        sysctls={str(name): str(value) for name, value in (linux.get("sysctl") or {}).items()},
        rlimits=read_limits(spec["process"]),
    )


def _translate(spec: Mapping[str, Any], *, terminal: bool, stdin: bool) -> Workload:
    refusals.check_spec(spec)
    process, linux = spec["process"], spec["linux"]
    env, hostname = _split_env(process.get("env") or [], spec, terminal=terminal)
    table = mount_table.sort_mounts(spec.get("mounts") or [])
    user, groups = read_user(process.get("user") or {})
    overrides = Overrides(
        entrypoint=tuple(map(str, process["args"])),
        env=env,
        cwd=mounts.shorten_path(str(process.get("cwd") or "/")),
        user=user,
        groups=groups,
        hostname=hostname,
        volumes=table.places,
        tmpfs=table.tmpfs,
        files=tuple(sorted(table.generated)),
        stdin=stdin,
        terminal=terminal,
        read_only_root=bool((spec.get("root") or {}).get("readonly")),
        no_new_privileges=bool(process.get("noNewPrivileges")),
        capabilities=read_capabilities(process),
        ambient=tuple(sorted(map(str, (process.get("capabilities") or {}).get("ambient") or ()))),
        seccomp=read_seccomp(linux),
        rlimits=read_limits(process),
        masked=_list_further(linux.get("maskedPaths"), mounts.MASKED),
        sealed=_list_further(linux.get("readonlyPaths"), mounts.READ_ONLY),
    )
    foundation = make_foundation(spec, str(linux["cgroupsPath"]))
    image = find_image(annotations_of(spec))
    size = process.get("consoleSize") or {}
    console = (int(size.get("height") or 0), int(size.get("width") or 0))
    return Workload(image, hostname, overrides, foundation, table.volumes, table.generated, user, console)


def _split_env(env: list[str], spec: Mapping[str, Any], *, terminal: bool) -> tuple[tuple[str, ...], str]:
    """Variables to ask for, and the host name: HOSTNAME follows from it, TERM from the terminal."""
    hostname = str(spec.get("hostname") or "")
    kept = []
    for item in map(str, env):
        name, _, value = item.partition("=")
        if name == "HOSTNAME" and value == (hostname or value):
            hostname = value
        elif not (terminal and item == "TERM=xterm"):
            kept.append(item)
    return tuple(kept), hostname


def read_capabilities(process: Mapping[str, Any]) -> tuple[str, ...]:
    """What a workload may have at most, as CAP_NAME: all of it for root, as under runc."""
    return tuple(sorted({str(name) for name in (process.get("capabilities") or {}).get("bounding") or ()}))


def read_limits(process: Mapping[str, Any]) -> tuple[Rlimit, ...]:
    """The POSIX resource limits; of one that is there twice the last counts. Raises `PeerError`."""
    found = {
        str(item["type"]): Rlimit(str(item["type"]), int(item["soft"]), int(item["hard"])) for item in process.get("rlimits") or ()
    }
    return tuple(found.values())


def _list_further(paths: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """What is to be hidden or sealed besides what always is."""
    return tuple(path for path in dict.fromkeys(map(mounts.shorten_path, map(str, paths or ()))) if path not in known)


def read_seccomp(linux: Mapping[str, Any]) -> str:
    """The pod's seccomp profile as a filter in base64; none when it has none."""
    profile = linux.get("seccomp")
    if not profile:
        return ""
    import base64

    from enclave_cc.host.shim import seccomp  # not for pods without one

    return base64.b64encode(seccomp.compile_profile(profile)).decode()


def read_user(user: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """(`user[:group]`, supplementary groups) to ask for; None is the image's own user."""
    uid, gid = int(user.get("uid") or 0), int(user.get("gid") or 0)
    groups = sorted({int(number) for number in user.get("additionalGids") or ()} - {gid, image_user.GID})
    if uid == image_user.UID:
        return None, tuple(map(str, groups))
    if gid == image_user.GID:
        return str(uid), tuple(map(str, groups))
    return ("0" if uid == gid == 0 else f"{uid}:{gid}"), tuple(map(str, groups))
