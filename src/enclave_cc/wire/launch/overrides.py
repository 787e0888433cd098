"""What the host wants otherwise than the image says. HOST-AUTHORED: a wish, never a fact."""

from __future__ import annotations

import binascii

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.launch import members
from enclave_cc.wire.launch.limits import Rlimit, check_limits
from enclave_cc.wire.launch.members import Members
from enclave_cc.wire.launch.mounts import Tmpfs, Volume, check_files, check_kernel_paths, check_path, check_volumes

VERSION = 1
MAX_UPPER_SIZE = 1 << 50
_INSTRUCTION, _MAX_INSTRUCTIONS = 8, 4096  # struct sock_filter, BPF_MAXINSNS
_HOSTNAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-")


@record(kw_only=True)
class Overrides:
    """Defaults ask for nothing. `env` items are NAME=VALUE; `upper_size` is bytes, 0 for boot init's default;
    `seccomp` is a BPF program in base64, which comes on top of boot init's own; `ambient` are those of `capabilities` that
    a user other than root keeps; `masked` and `sealed` are further places of the kernel to hide, or to leave readable only.

    Raises `PeerError("malformed")` for values that could not be carried out.
    """

    args: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    hostname: str = ""
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    files: tuple[str, ...] = ()
    stdin: bool = False
    terminal: bool = False
    read_only_root: bool = False
    no_new_privileges: bool = False
    capabilities: tuple[str, ...] | None = None
    ambient: tuple[str, ...] = ()
    seccomp: str = ""
    rlimits: tuple[Rlimit, ...] = ()
    masked: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()
    upper_size: int = 0

    def __post_init__(self) -> None:
        check_env(self.env)
        if self.cwd is not None:
            check_path(self.cwd, "the working directory")
        check_hostname(self.hostname)
        check_volumes(self.volumes, self.tmpfs)
        check_files(self.files)
        check_capabilities(self.capabilities or ())
        check_ambient(self.ambient, self.capabilities or ())
        check_limits(self.rlimits)
        check_kernel_paths((*self.masked, *self.sealed))
        read_filter(self.seccomp)
        if not 0 <= self.upper_size <= MAX_UPPER_SIZE:
            raise PeerError("malformed", "the size of the writable layer is out of range")

    def encode(self) -> bytes:
        return members.encode(
            {
                "version": VERSION,
                "args": None if self.args is None else list(self.args),
                "entrypoint": None if self.entrypoint is None else list(self.entrypoint),
                "env": list(self.env),
                "cwd": self.cwd,
                "user": self.user,
                "groups": list(self.groups),
                "hostname": self.hostname,
                "volumes": [volume.to_json() for volume in self.volumes],
                "tmpfs": [place.to_json() for place in self.tmpfs],
                "files": list(self.files),
                "stdin": self.stdin,
                "terminal": self.terminal,
                "read_only_root": self.read_only_root,
                "no_new_privileges": self.no_new_privileges,
                "capabilities": None if self.capabilities is None else list(self.capabilities),
                "ambient": list(self.ambient),
                "seccomp": self.seccomp,
                "rlimits": [limit.to_json() for limit in self.rlimits],
                "masked": list(self.masked),
                "sealed": list(self.sealed),
                "upper_size": self.upper_size,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Overrides:
        """Raises `PeerError("malformed")`. Empty `data` asks for nothing."""
        if not data:
            return cls()
        document = Members.parse(data, "the overrides")
        document.check_version(VERSION)
        overrides = cls(
            args=document.optional_texts("args"),
            entrypoint=document.optional_texts("entrypoint"),
            env=document.texts("env", optional=True),
            cwd=document.optional_text("cwd"),
            user=document.optional_text("user"),
            groups=document.texts("groups", optional=True),
            hostname=document.text("hostname", ""),
            volumes=tuple(Volume.from_json(item) for item in document.children("volumes", optional=True)),
            tmpfs=tuple(Tmpfs.from_json(item) for item in document.children("tmpfs", optional=True)),
            files=document.texts("files", optional=True),
            stdin=document.flag("stdin", False),
            terminal=document.flag("terminal", False),
            read_only_root=document.flag("read_only_root", False),
            no_new_privileges=document.flag("no_new_privileges", False),
            capabilities=document.optional_texts("capabilities"),
            ambient=document.texts("ambient", optional=True),
            seccomp=document.text("seccomp", ""),
            rlimits=tuple(Rlimit.from_json(item) for item in document.children("rlimits", optional=True)),
            masked=document.texts("masked", optional=True),
            sealed=document.texts("sealed", optional=True),
            upper_size=document.number("upper_size", 0, MAX_UPPER_SIZE, 0),
        )
        document.end()
        return overrides


def check_env(env: tuple[str, ...]) -> None:
    """Raises `PeerError("malformed")` unless each item is NAME=VALUE."""
    if not all("=" in item[1:] and "\0" not in item for item in env):
        raise PeerError("malformed", "an environment variable is not NAME=VALUE")


def check_hostname(hostname: str) -> None:
    """Raises `PeerError("malformed")` unless it is empty or one that Linux and resolvers take."""
    if len(hostname) > 64 or not set(hostname) <= _HOSTNAME_CHARACTERS or hostname[:1] in {"-", "."}:
        raise PeerError("malformed", "the host name is not 64 letters, digits, dots and dashes")


def read_filter(text: str) -> bytes:
    """A seccomp filter from base64: whole instructions, as many as Linux takes. Raises `PeerError("malformed")`."""
    try:
        program = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise PeerError("malformed", "the seccomp filter is not base64") from error
    if len(program) % _INSTRUCTION or len(program) > _INSTRUCTION * _MAX_INSTRUCTIONS:
        raise PeerError("malformed", "the seccomp filter is not of 8-byte instructions, or has more than 4096")
    return program


def check_capabilities(names: tuple[str, ...]) -> None:
    """Raises `PeerError("malformed")` unless each is written as CAP_NAME and none is there twice."""
    if len(set(names)) != len(names) or not all(_is_capability(name) for name in names):
        raise PeerError("malformed", "a capability is not CAP_NAME, or is there twice")


def check_ambient(ambient: tuple[str, ...], capabilities: tuple[str, ...]) -> None:
    """Raises `PeerError("malformed")` unless each is one of `capabilities`, as capabilities(7) has it."""
    check_capabilities(ambient)
    if not set(ambient) <= set(capabilities):
        raise PeerError("malformed", "an ambient capability is not one of the container's")


def _is_capability(name: str) -> bool:
    return name[:4] == "CAP_" and 4 < len(name) <= 64 and name.isascii() and name.replace("_", "").isalpha() and name.isupper()
