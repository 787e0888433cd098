"""The process that serves the decrypted blobs: the only one that keeps the keys once the rootfs is mounted."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
from typing import NoReturn

from enclave_cc.enclave.boot import log, signals, syscalls
from enclave_cc.enclave.boot.fuse import BlobFileSystem
from enclave_cc.errors import TABLE, EnclaveCcError, EnvironmentFault, PeerError, foreign
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

_REPORT_LIMIT = 4096
_STANDARD_ERROR = 2


class BlobServer:
    """A running server. `pid` is this process's child; who reaps it is the caller's choice."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def start(cls, rootfs: RootfsDescriptor, directory: str, mountpoint: str, *, deadline: float) -> BlobServer:
        """Forks a server of the blobs in `directory`, mounted at `mountpoint`. `deadline` is in seconds.

        Raises `PeerError("seal-broken")` for a blob that is not as sealed, `EnvironmentFault`.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            gc.freeze()  # the child's collector would otherwise write to, and so copy, every page it shares with us
            with signals.blocked():
                pid = os.fork()
                if pid == 0:
                    _run(rootfs, directory, mountpoint, writer)
            gc.unfreeze()
            os.close(writer)
            writer = -1
            server = cls(pid)
            try:
                _await(reader, deadline)
            except BaseException:
                server.stop()
                raise
            return server
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)

    def kill(self) -> None:
        """Ends it at once; whoever reads from the mount then gets an error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends and reaps it, unless somebody has."""
        self.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _await(reader: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if not poll.poll(deadline * 1000):
        raise EnvironmentFault("deadline", "the server of the encrypted rootfs did not start in time")
    report = os.read(reader, _REPORT_LIMIT)
    if not report:
        raise EnvironmentFault("mount-failed", "the server of the encrypted rootfs ended at its start; see boot.log")
    error = json.loads(report)
    if error is not None:
        kind = PeerError if error["peer"] else EnvironmentFault
        raise kind(error["code"], error["what"])


def _run(rootfs: RootfsDescriptor, directory: str, mountpoint: str, writer: int) -> NoReturn:
    try:
        signals.reset()
        # A signal to the whole container is the workload's to answer; its files stay until it has.
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.close_all_but([_STANDARD_ERROR, writer])  # not the workload's streams: their readers wait for their end
        blobs = [(name, f"{directory}/{blob.file_name}", blob) for name, blob in rootfs.named_blobs]
        files = BlobFileSystem(blobs, mountpoint, lambda message: log.write("error", message))
        files.mount()
        # All files are open. From here on this process needs no rights, and nothing may give it any.
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.set_capabilities(0, 0, 0)
        os.write(writer, b"null")
        os.close(writer)
        files.serve()
    except EnclaveCcError as error:
        report = {"code": error.code, "what": error.what, "peer": isinstance(error, PeerError)}
        with contextlib.suppress(OSError):
            os.write(writer, json.dumps(report).encode()[:_REPORT_LIMIT])
    except BaseException as error:  # noqa: BLE001  (nothing may run on as a second boot init)
        log.write("error", f"the rootfs server failed: {type(error).__name__} {foreign(error)}")
    finally:
        os._exit(TABLE["internal"].exit)
