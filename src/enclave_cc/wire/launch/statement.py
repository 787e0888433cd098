"""What boot init is to run. Written by the agent, carried by the handover only."""

from __future__ import annotations

from typing import Any

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.launch import members
from enclave_cc.wire.launch.limits import Rlimit, check_limits
from enclave_cc.wire.launch.members import Members
from enclave_cc.wire.launch.mounts import Tmpfs, Volume, check_files, check_kernel_paths, check_path, check_volumes
from enclave_cc.wire.launch.overrides import MAX_UPPER_SIZE, check_ambient, check_env, check_hostname, read_filter

VERSION = 1


@record(kw_only=True)
class LaunchStatement:
    """One container's launch, complete. Field meanings: docs/formats/launch.md, "Launch statement"."""

    image: str
    manifest_digest: str
    container_id: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = "0"
    groups: tuple[str, ...] = ()
    hostname: str = ""
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    files: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    stdin: bool = False
    terminal: bool = False
    capabilities: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str = ""
    rlimits: tuple[Rlimit, ...] = ()
    masked: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()
    read_only_root: bool = False
    upper_size: int = 0
    allow_exec: bool = False
    stop_signal: int = 15

    def __post_init__(self) -> None:
        digits = self.manifest_digest.removeprefix("sha256:")
        if digits == self.manifest_digest or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
            raise PeerError("malformed", "the launch statement's manifest digest is not sha256 and 64 hex digits")
        if not self.args or not self.args[0]:
            raise PeerError("malformed", "the launch statement has no command")
        if not 1 <= self.stop_signal <= 64:
            raise PeerError("malformed", "the launch statement's stop signal is out of range")
        check_env(self.env)
        check_path(self.cwd, "the working directory")
        check_hostname(self.hostname)
        check_volumes(self.volumes, self.tmpfs)
        check_files(self.files)
        check_ambient(self.ambient, self.capabilities)
        check_limits(self.rlimits)
        check_kernel_paths((*self.masked, *self.sealed))
        read_filter(self.seccomp)
        for path in self.scratch:
            check_path(path, "a volume of the image")

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "image": self.image,
            "manifest_digest": self.manifest_digest,
            "container_id": self.container_id,
            "args": list(self.args),
            "env": list(self.env),
            "cwd": self.cwd,
            "user": self.user,
            "groups": list(self.groups),
            "hostname": self.hostname,
            "volumes": [volume.to_json() for volume in self.volumes],
            "tmpfs": [place.to_json() for place in self.tmpfs],
            "files": list(self.files),
            "scratch": list(self.scratch),
            "stdin": self.stdin,
            "terminal": self.terminal,
            "capabilities": list(self.capabilities),
            "ambient": list(self.ambient),
            "no_new_privileges": self.no_new_privileges,
            "seccomp": self.seccomp,
            "rlimits": [limit.to_json() for limit in self.rlimits],
            "masked": list(self.masked),
            "sealed": list(self.sealed),
            "read_only_root": self.read_only_root,
            "upper_size": self.upper_size,
            "allow_exec": self.allow_exec,
            "stop_signal": self.stop_signal,
        }

    def encode(self) -> bytes:
        """Canonical JSON."""
        return members.encode(self.to_json())

    @classmethod
    def from_json(cls, value: object) -> LaunchStatement:
        """Raises `PeerError("malformed")`."""
        return cls._read(Members(value, "the launch statement"))

    @classmethod
    def parse(cls, data: bytes) -> LaunchStatement:
        """Raises `PeerError("malformed")`."""
        return cls._read(Members.parse(data, "the launch statement"))

    @classmethod
    def _read(cls, document: Members) -> LaunchStatement:
        document.check_version(VERSION)
        statement = cls(
            image=document.text("image"),
            manifest_digest=document.text("manifest_digest"),
            container_id=document.text("container_id"),
            args=document.texts("args"),
            env=document.texts("env"),
            cwd=document.text("cwd"),
            user=document.text("user"),
            groups=document.texts("groups"),
            hostname=document.text("hostname"),
            volumes=tuple(Volume.from_json(item) for item in document.children("volumes")),
            tmpfs=tuple(Tmpfs.from_json(item) for item in document.children("tmpfs")),
            files=document.texts("files"),
            scratch=document.texts("scratch"),
            stdin=document.flag("stdin"),
            terminal=document.flag("terminal"),
            capabilities=document.texts("capabilities"),
            ambient=document.texts("ambient"),
            no_new_privileges=document.flag("no_new_privileges"),
            seccomp=document.text("seccomp"),
            rlimits=tuple(Rlimit.from_json(item) for item in document.children("rlimits")),
            masked=document.texts("masked"),
            sealed=document.texts("sealed"),
            read_only_root=document.flag("read_only_root"),
            upper_size=document.number("upper_size", 0, MAX_UPPER_SIZE),
            allow_exec=document.flag("allow_exec"),
            stop_signal=document.number("stop_signal", 1, 64),
        )
        document.end()
        return statement
