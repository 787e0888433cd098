"""The workload's process, and the processes that exec adds to it (runc's order; docs/adr/0008-boot-init.md).

The parent forks, the child prepares itself and reports over a channel, and only a `go` from the parent lets it reach
`execve`. The end of the channel without an error is the proof that `execve` happened: it is close-on-exec.
"""

from __future__ import annotations

import array  # noqa: F401  (socket.recv_fds imports it late; a child cannot import)
import contextlib
import errno
import json
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from enclave_cc.enclave.boot import capabilities, filesystem, passwd, seccomp, signals, syscalls, terminal
from enclave_cc.errors import TABLE, EnclaveCcError, EnvironmentFault, PeerError, foreign
from enclave_cc.record import record

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
_GO = b"go"
_MESSAGE_LIMIT = 16384
_STANDARD = 3  # descriptors 0, 1 and 2


@record
class ProcessSpec:
    """What to execute, and as whom. `capabilities` and `ambient` are bit masks, `rlimits` are (RLIMIT_* number, soft, hard),
    `seccomp` is a filter on top of our own (8 bytes an instruction).
    """

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    groups: tuple[str | int, ...] = ()
    capabilities: int = 0
    ambient: int = 0
    no_new_privileges: bool = False
    seccomp: bytes = b""
    rlimits: tuple[tuple[int, int, int], ...] = ()
    terminal: bool = False
    rows: int = 0
    columns: int = 0

    def __post_init__(self) -> None:
        if not self.args or not self.args[0]:
            raise PeerError("launch-failed", "the image names no command, and none was given")
        if not self.cwd.startswith("/"):
            raise PeerError("launch-failed", f"the working directory {foreign(self.cwd)!r} is not absolute")
        texts = (*self.args, *self.env, self.cwd, self.user)
        if any("\0" in text for text in texts) or any("=" not in entry for entry in self.env):
            raise PeerError("launch-failed", "an argument or environment entry is not one that the kernel takes")


@record
class Report:
    """One message of a child. `kind`: `terminal` (with `fd`, the master), `ready` (waits for go), `failed`, `executed`."""

    kind: str
    fd: int | None = None
    error: EnclaveCcError | None = None
    exit_code: int = 0


class Child:
    """A forked process on its way to `execve`. `pid` is in boot init's PID namespace."""

    __slots__ = ("channel", "pid")

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel

    def read(self) -> Report:
        """The next report; waits as long as the channel's timeout. Raises `TimeoutError`."""
        data, fds, _, _ = socket.recv_fds(self.channel, _MESSAGE_LIMIT, 1)
        if not data:
            for fd in fds:
                os.close(fd)
            return Report("executed")
        message = json.loads(data)
        if message["kind"] == "failed":
            return Report("failed", None, EnvironmentFault(message["code"], message["what"]), message["exit_code"])
        return Report(message["kind"], fds[0] if fds else None)

    def release(self) -> None:
        """Lets the child execute."""
        with contextlib.suppress(OSError):  # it is gone: the channel's end says so
            self.channel.send(_GO)


def start_workload(root: str, view: filesystem.View, hostname: str | None, spec: ProcessSpec, stdio: Sequence[int]) -> Child:
    """Forks the workload: PID 1 of a new PID namespace, in its own mount (and UTS) namespace, rooted at the mount `root`."""

    def prepare() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWUTS if hostname else 0))
        syscalls.make_private("/")
        captured = filesystem.capture(view)
        filesystem.enter_root(root)
        filesystem.furnish(view, captured)
        if hostname:
            socket.sethostname(hostname)

    return _start(None, prepare, spec, stdio)


def start_exec(workload: int, spec: ProcessSpec, stdio: Sequence[int]) -> Child:
    """Forks one more process into the namespaces of `workload` (a pidfd). Raises `OSError` if that is dead."""

    def prepare() -> None:
        syscalls.setns(workload, syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC)

    return _start(workload, prepare, spec, stdio)


def _start(namespace: int | None, prepare: Callable[[], None], spec: ProcessSpec, stdio: Sequence[int]) -> Child:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with signals.blocked():
            pid = syscalls.fork_into_pid_namespace(namespace)
            if pid == 0:
                _run_child(theirs, prepare, spec, stdio, namespace)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Child(pid, ours)


def _run_child(
    channel: socket.socket, prepare: Callable[[], None], spec: ProcessSpec, stdio: Sequence[int], namespace: int | None
) -> NoReturn:
    try:
        _forbid_imports()
        signals.reset()
        syscalls.close_all_but([channel.fileno(), *stdio, *([] if namespace is None else [namespace])])
        prepare()
        _become(channel, spec, stdio, is_workload=namespace is None)
    except EnclaveCcError as error:
        _report_failure(channel, error.code, error.what, error.exit)
    except _ExecFailure as error:
        _report_failure(channel, "exec-failed", str(error), error.exit_code)
    except OSError as error:
        about = f"{foreign(error.filename)}: " if error.filename else ""
        _report_failure(channel, "launch-failed", f"{about}{error.strerror}", TABLE["launch-failed"].exit)
    except BaseException as error:  # noqa: BLE001  (nothing may run on as a second boot init)
        _report_failure(channel, "internal", f"{type(error).__name__} while starting the process", TABLE["internal"].exit)
    finally:
        os._exit(TABLE["internal"].exit)


def _become(channel: socket.socket, spec: ProcessSpec, stdio: Sequence[int], *, is_workload: bool) -> NoReturn:
    """From a prepared child in the workload's namespaces to `execve`."""
    os.umask(0o022)
    syscalls.join_new_session_keyring()
    os.setsid()
    identity = passwd.resolve(spec.user, spec.groups, passwd.read_database("/etc/passwd"), passwd.read_database("/etc/group"))
    if spec.terminal:
        master, slave = terminal.open_pair(spec.rows, spec.columns, identity.uid)
        if is_workload:
            terminal.bind_console(master)
        socket.send_fds(channel, [b'{"kind":"terminal"}'], [master])
        os.close(master)
        terminal.make_controlling(slave)
        stdio = [slave] * _STANDARD
    _place_stdio(stdio, identity.uid)
    _set_limits(spec.rlimits)
    if is_workload:  # an exec finds the workload's directories, it makes none in them
        _make_cwd(spec.cwd)
    in_cwd = _enter(spec.cwd)
    allowed = capabilities.bound(spec.capabilities)
    if spec.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(allowed)  # while still allowed to without no_new_privs
    if spec.seccomp and not spec.no_new_privileges:
        syscalls.install_filter(spec.seccomp)
    capabilities.switch_user(identity.uid, identity.gid, identity.groups, allowed, allowed & spec.ambient)
    if not in_cwd:  # a directory that the user may enter, but root without DAC_OVERRIDE (or over NFS) may not
        os.chdir(spec.cwd)
    channel.send(b'{"kind":"ready"}')
    if channel.recv(len(_GO)) != _GO:
        os._exit(TABLE["internal"].exit)
    syscalls.close_on_exec_from(_STANDARD)
    if spec.seccomp and spec.no_new_privileges:  # as late as it can be: it may forbid what we did until here
        syscalls.install_filter(spec.seccomp)
    _execute(spec.args, make_environment(spec, identity.home))


def make_environment(spec: ProcessSpec, home: str) -> dict[str, str]:
    """The process' environment; of an entry given twice the last counts. PATH, HOME and TERM get docker's defaults."""
    environment = {"PATH": DEFAULT_PATH}
    if spec.terminal:
        environment["TERM"] = "xterm"
    for entry in spec.env:
        name, _, value = entry.partition("=")
        environment[name] = value
    if not environment.get("HOME"):
        environment["HOME"] = home
    return environment


class _ExecFailure(Exception):
    def __init__(self, what: str, exit_code: int) -> None:
        super().__init__(what)
        self.exit_code = exit_code


def _execute(args: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    """execvp(3) with docker's words and exit codes."""
    command = args[0]
    searched = environment["PATH"].split(":")
    candidates = [command] if "/" in command else [f"{directory or '.'}/{command}" for directory in searched]
    denied: OSError | None = None
    for path in candidates:
        try:
            os.execve(path, args, environment)  # noqa: S606  (this is what boot init is for)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and denied is None:
                denied = error
    if denied is not None:
        raise _ExecFailure(f"{foreign(command)}: {denied.strerror}", EXIT_NOT_EXECUTABLE)
    where = "no such file or directory" if "/" in command else "executable file not found in $PATH"
    raise _ExecFailure(f"{foreign(command)}: {where}", EXIT_NOT_FOUND)


class _NoImports:
    @staticmethod
    def find_spec(name: str, *_: object) -> NoReturn:
        raise ModuleNotFoundError(f"{name} would come from the workload's files", name=name)


def _forbid_imports() -> None:
    """No module is found any more. After pivot_root or setns the import path would lead into the workload's files."""
    sys.meta_path[:] = [_NoImports]
    sys.path_hooks.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()


def _place_stdio(fds: Sequence[int], uid: int) -> None:
    # Away from 0-2 first: one of the sources may be the target of another.
    high = [os.dup(fd) for fd in fds]
    sources = []
    for fd in high:
        copy = fd
        while copy < _STANDARD:
            copy = os.dup(copy)
        sources.append(copy)
    for target, source in enumerate(sources):
        os.dup2(source, target, inheritable=True)
    for fd in {*high, *sources} - set(range(_STANDARD)):
        os.close(fd)
    for fd in range(_STANDARD):
        about = os.fstat(fd)
        if stat.S_ISCHR(about.st_mode) and about.st_rdev == os.makedev(1, 3):
            continue  # /dev/null belongs to everybody
        with contextlib.suppress(OSError):  # so that the user can open /dev/stdout again; runc does it, and lets it fail
            os.fchown(fd, uid, -1)


def _set_limits(limits: Sequence[tuple[int, int, int]]) -> None:
    for number, soft, hard in limits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:
            raise PeerError("launch-failed", f"resource limit {number} cannot be {soft}:{hard} ({error})") from error


def _make_cwd(path: str) -> None:
    if not os.path.isdir(path):
        try:
            filesystem.make_directory(path)
        except OSError as error:
            raise PeerError("launch-failed", f"the working directory {foreign(path)!r}: {error.strerror}") from error


def _enter(path: str) -> bool:
    try:
        os.chdir(path)
    except PermissionError:
        return False
    return True


def _report_failure(channel: socket.socket, code: str, what: str, exit_code: int) -> None:
    message = {"kind": "failed", "code": code, "what": what[: _MESSAGE_LIMIT // 8], "exit_code": exit_code}
    with contextlib.suppress(OSError):
        channel.send(json.dumps(message).encode())
