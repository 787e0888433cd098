"""The process that serves the decrypted blobs: the only one that keeps the keys once the rootfs is mounted."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
from collections.abc import Callable
from typing import NoReturn

from enclave_cc.enclave.boot import log, signals, syscalls
from enclave_cc.enclave.boot.fuse import BlobFileSystem
from enclave_cc.errors import TABLE, EnclaveCcError, EnvironmentFault, PeerError, foreign
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

_REPORT_LIMIT = 4096
_READY = b"ready\n"
_STANDARD_ERROR = 2


class BlobServer:
    """A running server. `pid` is this process's child; who reaps it is the caller's choice."""

    def __init__(self, pid: int, reader: int) -> None:
        self.pid = pid
        self._reader = reader
        self._failure: EnclaveCcError | None = None

    @classmethod
    def start(cls, rootfs: RootfsDescriptor, directory: str, mountpoint: str, *, deadline: float) -> BlobServer:
        """Forks a server of the blobs in `directory`, mounted at `mountpoint`. `deadline` is in seconds.

        Raises `PeerError("seal-broken")` for a blob that is not as sealed, `EnvironmentFault`.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            gc.freeze()  # the child's collector would otherwise write to, and so copy, every page it shares with us
            with signals.blocked():
                pid = os.fork()
                if pid == 0:
                    _run(rootfs, directory, mountpoint, writer)
            gc.unfreeze()
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        server = cls(pid, reader)
        try:
            server._await(deadline)
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def failure(self) -> EnclaveCcError | None:
        """The first block that did not open, if one did not: why what the kernel calls an I/O error happened."""
        if self._failure is None and self._reader >= 0:
            with contextlib.suppress(BlockingIOError):
                self._failure = _parse_report(os.read(self._reader, _REPORT_LIMIT))
        return self._failure

    def kill(self) -> None:
        """Ends it at once; whoever reads from the mount then gets an error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends and reaps it, unless somebody has."""
        self.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        reader, self._reader = self._reader, -1
        if reader >= 0:
            os.close(reader)

    def _await(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if not poll.poll(deadline * 1000):
            raise EnvironmentFault("deadline", "the server of the encrypted rootfs did not start in time")
        report = os.read(self._reader, len(_READY))
        if not report:
            raise EnvironmentFault("mount-failed", "the server of the encrypted rootfs ended at its start; see boot.log")
        if report != _READY:
            raise _parse_report(report + os.read(self._reader, _REPORT_LIMIT)) or EnvironmentFault("mount-failed", "no report")


def _make_report(code: str, what: str, *, peer: bool) -> bytes:
    return json.dumps({"code": code, "what": what[: _REPORT_LIMIT // 16], "peer": peer}).encode() + b"\n"


def _parse_report(data: bytes) -> EnclaveCcError | None:
    line = data.split(b"\n", 1)[0]
    if not line:
        return None  # it ended
    report = json.loads(line)
    kind = PeerError if report["peer"] else EnvironmentFault
    return kind(report["code"], report["what"])


def _make_complaint(writer: int) -> Callable[[str], None]:
    """What the file system's log is: a line in the log, and for a broken block a report, while there is room for it."""

    def complain(message: str) -> None:
        log.write("error", message)
        code, _, what = message.partition(": ")
        if code == "seal-broken":
            with contextlib.suppress(OSError):
                os.write(writer, _make_report(code, what, peer=True))

    return complain


def _run(rootfs: RootfsDescriptor, directory: str, mountpoint: str, writer: int) -> NoReturn:
    try:
        gc.enable()  # boot init's is off until the workload runs
        signals.reset()
        # A signal to the whole container is the workload's to answer; its files stay until it has.
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.close_all_but([_STANDARD_ERROR, writer])  # not the workload's streams: their readers wait for their end
        blobs = [(name, f"{directory}/{blob.file_name}", blob) for name, blob in rootfs.named_blobs]
        files = BlobFileSystem(blobs, mountpoint, _make_complaint(writer))
        files.mount()
        # All files are open. From here on this process needs no rights, and nothing may give it any.
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.set_capabilities(0, 0, 0)
        os.write(writer, _READY)
        files.serve()
    except EnclaveCcError as error:
        with contextlib.suppress(OSError):
            os.write(writer, _make_report(error.code, error.what, peer=isinstance(error, PeerError)))
    except BaseException as error:  # noqa: BLE001  (nothing may run on as a second boot init)
        log.write("error", f"the rootfs server failed: {type(error).__name__} {foreign(error)}")
    finally:
        os._exit(TABLE["internal"].exit)
