"""Keeps the status file (docs/formats/control.md)."""

from __future__ import annotations

import contextlib
import os
import time

from enclave_cc.enclave.boot import log
from enclave_cc.errors import EnclaveCcError
from enclave_cc.wire.control.status import State, Status, StatusError


class StatusBoard:
    """The status of boot init, in memory and in `directory`/status.json.

    The directory is the host's. A status that cannot be written there is logged and stops nothing.
    """

    def __init__(self, directory: str, container_id: str) -> None:
        self._directory = directory
        self._started = time.monotonic()
        self.status = Status(container_id, State.STARTING)
        self._publish()

    def reach(self, stage: str) -> None:
        """Notes that `stage` is done."""
        stages = {**self.status.stages, stage: int((time.monotonic() - self._started) * 1000)}
        self._replace(self.status.state, stages=stages)

    def run(self) -> None:
        """The workload reached `execve`."""
        stages = {**self.status.stages, "running": int((time.monotonic() - self._started) * 1000)}
        self._replace(State.RUNNING, stages=stages)

    def exit(self, exit_code: int) -> None:
        """The workload ended by itself."""
        self._replace(State.EXITED, exit_code)

    def fail(self, error: EnclaveCcError, exit_code: int) -> None:
        """Boot init gave up, before or after the workload ran."""
        log.write("error", str(error), code=error.code)
        self._replace(State.ERROR, exit_code, StatusError(error.code, error.what, error.fix))

    def _replace(
        self,
        state: State,
        exit_code: int | None = None,
        error: StatusError | None = None,
        stages: dict[str, int] | None = None,
    ) -> None:
        kept = self.status.stages if stages is None else stages
        self.status = Status(self.status.container_id, state, exit_code, error, kept)
        self._publish()

    def _publish(self) -> None:
        try:
            directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            log.write("warning", f"the status cannot be written: {error.strerror}")
            return
        try:
            # A file of our own each time, not followed if the host put a link there.
            with contextlib.suppress(FileNotFoundError):
                os.unlink("status.json.new", dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open("status.json.new", flags, 0o600, dir_fd=directory)
            try:
                os.write(fd, self.status.encode())
            finally:
                os.close(fd)
            os.rename("status.json.new", "status.json", src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            log.write("warning", f"the status cannot be written: {error.strerror}")
        finally:
            os.close(directory)
