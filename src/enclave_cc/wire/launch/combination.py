"""From image configuration, overrides and launch policy to the launch statement, as `docker run` combines them."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import NoReturn, Protocol

from enclave_cc.errors import PeerError, foreign
from enclave_cc.wire.launch.mounts import SHARED_MEMORY, TERMINATION_LOG, check_path, shorten_path
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.launch.policy import LaunchPolicy, Permissions
from enclave_cc.wire.launch.statement import LaunchStatement

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# docker's default set (moby, oci/caps/defaults.go).
DEFAULT_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip


class ImageSettings(Protocol):
    """What of an image configuration matters here (`wire.oci.config.ImageConfig`)."""

    @property
    def entrypoint(self) -> tuple[str, ...]: ...
    @property
    def cmd(self) -> tuple[str, ...]: ...
    @property
    def env(self) -> tuple[str, ...]: ...
    @property
    def working_dir(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def volumes(self) -> tuple[str, ...]: ...
    @property
    def stop_signal(self) -> str: ...


def combine(
    config: ImageSettings,
    overrides: Overrides,
    policy: LaunchPolicy,
    *,
    name: str,
    image: str,
    manifest_digest: str,
    container_id: str,
) -> LaunchStatement:
    """The launch statement of one container. `name` is HOST[:PORT]/REPOSITORY, `image` the whole reference.

    Raises `PeerError("launch-denied")` for the first wish of `overrides` that the policy does not allow, and
    `PeerError("launch-failed")` for an image that cannot be run as it says.

    1. arguments differ from the image's own only where `command` is allowed
    2. a variable that is new or has another value is allowed by `env` or `env:NAME`
    3. another working directory is allowed by `workdir`
    4. another user, or groups, are allowed by `user`
    5. each volume, or empty file system, is allowed by `volumes` or `volumes:DESTINATION`; Kubernetes' termination log
       always is, and the pod's /dev/shm is left out where it is not: every pod brings it, and without it the container has its own
    6. a capability that docker does not give, or gives to root alone, is allowed by `capabilities` or
       `capabilities:CAP_NAME`
    7. standard input, and a terminal, which is one, are allowed by `stdin`: a shell does what it reads there
    """
    allowed = policy.for_image(name)
    # 1
    own = (*config.entrypoint, *config.cmd)
    args = _choose_args(config, overrides)
    if args != own and not allowed.allows("command"):
        _deny("the command of the image is not to be replaced", "command", name)
    if not args or not args[0]:
        raise PeerError("launch-failed", "the image names no command", "Give one: `run IMAGE COMMAND`, where the owner allows it.")
    # 2
    env = _merge_env(config, overrides, allowed, name)
    # 3
    cwd = shorten_path(config.working_dir) if config.working_dir else "/"
    if overrides.cwd is not None and overrides.cwd != cwd:
        if not allowed.allows("workdir"):
            _deny("the working directory of the image is not to be replaced", "workdir", name)
        cwd = overrides.cwd
    # 4
    user = config.user or "0"
    if (overrides.user is not None and overrides.user != user) or overrides.groups:
        if not allowed.allows("user"):
            _deny("the user of the image is not to be replaced", "user", name)
        user = overrides.user or user
    # 5
    volumes = []
    for volume in overrides.volumes:
        if volume.destination == TERMINATION_LOG or allowed.allows("volumes", volume.destination):
            volumes.append(volume)
        elif volume.destination != SHARED_MEMORY:
            _deny(f"no host volume is to be mounted at {foreign(volume.destination)}", "volumes", name)
    for place in overrides.tmpfs:
        if not allowed.allows("volumes", place.destination):
            _deny(f"nothing is to cover {foreign(place.destination)}", "volumes", name)
    # 6
    for capability in overrides.capabilities or ():
        if capability not in DEFAULT_CAPABILITIES and not allowed.allows("capabilities", capability):
            _deny(f"the capability {foreign(capability)} is not to be added", "capabilities", name)
    for capability in overrides.ambient:
        if not allowed.allows("capabilities", capability):
            _deny(f"no user but root is to have the capability {foreign(capability)}", "capabilities", name)
    # 7
    stdin = overrides.stdin or overrides.terminal
    if stdin and not allowed.allows("stdin"):
        _deny("nothing is to be written to the image's standard input", "stdin", name)
    return LaunchStatement(
        image=image,
        manifest_digest=manifest_digest,
        container_id=container_id,
        args=args,
        env=env,
        cwd=cwd,
        user=user,
        groups=overrides.groups,
        hostname=overrides.hostname,
        volumes=tuple(volumes),
        tmpfs=overrides.tmpfs,
        files=overrides.files,
        scratch=_find_scratch(config.volumes, overrides) if overrides.read_only_root else (),
        stdin=stdin,
        terminal=overrides.terminal,
        capabilities=DEFAULT_CAPABILITIES if overrides.capabilities is None else overrides.capabilities,
        ambient=overrides.ambient,
        no_new_privileges=overrides.no_new_privileges,
        seccomp=overrides.seccomp,
        rlimits=overrides.rlimits,
        masked=overrides.masked,
        sealed=overrides.sealed,
        read_only_root=overrides.read_only_root,
        upper_size=overrides.upper_size,
        allow_exec=allowed.allows("exec"),
        stop_signal=_parse_signal(config.stop_signal),
    )


def _deny(what: str, word: str, name: str) -> NoReturn:
    raise PeerError("launch-denied", what, f"The owner allows it with `enclave-cc image publish --allow {word}` for {name}.")


def _choose_args(config: ImageSettings, overrides: Overrides) -> tuple[str, ...]:
    if overrides.entrypoint is not None:
        return (*overrides.entrypoint, *(overrides.args or ()))
    return (*config.entrypoint, *(config.cmd if overrides.args is None else overrides.args))


def _merge_env(config: ImageSettings, overrides: Overrides, allowed: Permissions, name: str) -> tuple[str, ...]:
    merged = {"PATH": DEFAULT_PATH}
    if overrides.terminal:
        merged["TERM"] = "xterm"
    if overrides.hostname:
        merged["HOSTNAME"] = overrides.hostname
    merged.update(_split(config.env))
    for key, value in _split(overrides.env):
        if merged.get(key) != value and not allowed.allows("env", key):
            _deny(f"the variable {foreign(key)} is not to be set", "env", name)
        merged[key] = value
    return tuple(f"{key}={value}" for key, value in merged.items())


def _split(env: Iterable[str]) -> Iterable[tuple[str, str]]:
    for item in env:
        key, _, value = item.partition("=")
        yield key, value


def _find_scratch(volumes: tuple[str, ...], overrides: Overrides) -> tuple[str, ...]:
    taken = {*(volume.destination for volume in overrides.volumes), *(place.destination for place in overrides.tmpfs)}
    paths = (check_path(shorten_path(path), "a volume of the image") for path in volumes)
    return tuple(sorted({path for path in paths if path != "/" and path not in taken}))


def _parse_signal(text: str) -> int:
    """`SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`. Raises `PeerError("launch-failed")`."""
    if not text:
        return int(signal.SIGTERM)
    if text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= 64:
        return int(text)
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    base, sign, offset = name.partition("+" if "+" in name else "-")
    found = getattr(signal, base, None)
    realtime = base in ("SIGRTMIN", "SIGRTMAX") and offset.isascii() and offset.isdigit() and len(offset) < 3
    if isinstance(found, signal.Signals) and (not sign or realtime):
        distance = int(offset) if sign else 0
        number = found + distance if sign == "+" else found - distance
        if 1 <= number <= 64:
            return number
    raise PeerError("launch-failed", f"the image's stop signal {foreign(text)!r} is none")
