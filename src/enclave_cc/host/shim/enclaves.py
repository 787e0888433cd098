"""The pod's platform as the shim has it: a process that is there while somebody asks (`cpu_process.py`), and the memory of
which enclaves there are. Where no fork server makes that process, the platform is in the shim itself.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.host.shim import fork_server
from enclave_cc.host.shim.reaper import Reaper

if TYPE_CHECKING:
    from enclave_cc.host.sandbox.bundle import Bundle
    from enclave_cc.host.sandbox.enclaves import SimulatedEnclaves
    from enclave_cc.host.sandbox.pod import Pod

MESSAGE_LIMIT = 1 << 16
_PAUSE = 1.0  # seconds after a platform that could not be had
_ERRORS: dict[str, type[EnclaveCcError]] = {kind.__name__: kind for kind in (PeerError, UsageError, EnvironmentFault)}


class SleepingEnclaves:
    """`pod.Enclaves`, awake when needed."""

    def __init__(self, pod: Pod, reaper: Reaper) -> None:
        self._pod = pod
        self._reaper = reaper
        self._deadline = pod.configuration.deadlines.app_start
        self._guard = threading.Lock()
        self._known: dict[str, dict[str, str]] = {}  # by container, what tells a new process of its enclave
        self._listener: socket.socket | None = None  # once it is served
        self._control: socket.socket | None = None
        self._life = -1  # hangs up when the process has ended
        self._inside: SimulatedEnclaves | None = None
        self._closed = False

    def launch(self, container: str, bundle: Bundle, *, group: str, config_id: bytes = bytes(64)) -> None:
        """As `pod.Enclaves`."""
        place = {"container": container, "group": group}
        request = {"do": "launch", **place, "directory": str(bundle.directory), "role": bundle.role, "config_id": config_id.hex()}
        with self._guard:
            answer = self._ask(request)
            if answer is None:
                assert self._inside is not None  # noqa: S101 - so says `_ask`
                self._inside.launch(container, bundle, group=group, config_id=config_id)
                answer = {"identity": self._inside.describe(container).hex()}
            self._known[container] = {"do": "adopt", **place, "identity": str(answer["identity"])}

    def start(self, listener: socket.socket) -> None:
        with self._guard:
            self._listener = listener
            if self._inside is not None:
                self._inside.start(listener)
            elif self._control is not None:
                self._tell_process({"do": "serve"}, self._control, listener)

    def forget(self, container: str) -> None:
        with self._guard:
            self._known.pop(container, None)
            if self._inside is not None:
                self._inside.forget(container)
            elif self._control is not None:
                with suppress(OSError, EnclaveCcError):  # it has ended, or will know no better
                    self._tell_process({"do": "forget", "container": container}, self._control)

    def close(self) -> None:
        self._closed = True
        control = self._control
        if control is not None:
            with suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer waits no more
        with self._guard:
            self._drop()
            if self._inside is not None:
                self._inside.close()
            if self._listener is not None:
                self._reaper.forget(self._listener.fileno())
                self._listener.close()

    # --- with the guard held

    def _ask(self, request: dict[str, str]) -> dict[str, Any] | None:
        """The process's answer; None when there is none to be had, and then the platform is inside. Raises coded errors."""
        for _ in range(2):  # it may end, or be killed, just now
            if self._inside is not None or self._closed:
                break
            try:
                if self._control is None:
                    self._wake()
                if self._control is not None:
                    return self._tell_process(request, self._control)
            except OSError:
                self._drop()
        if self._closed:
            raise EnvironmentFault("app-died", "the pod was stopped while it started")
        if self._inside is None:
            self._move_in()
        return None

    def _tell_process(self, request: dict[str, str], control: socket.socket, *sockets: socket.socket) -> dict[str, Any]:
        """Raises the process's coded error, `OSError` when it has ended, `EnvironmentFault("deadline")`."""
        data = json.dumps(request).encode()
        try:
            socket.send_fds(control, [data], [sock.fileno() for sock in sockets])
            answer = json.loads(control.recv(MESSAGE_LIMIT) or b"null")
        except TimeoutError as error:
            self._drop()
            raise EnvironmentFault("deadline", f"the simulated CPU did not answer within {self._deadline:g} s") from error
        if answer is None:
            raise ConnectionError("the simulated CPU has ended")
        if "error" in answer:
            kind, code, what, fix = answer["error"]
            raise _ERRORS.get(kind, UsageError)(code, what, fix)
        found: dict[str, Any] = answer
        return found

    def _wake(self) -> None:
        """Makes the process, unless there is no fork server; it knows then what the one before knew. Raises `OSError`."""
        control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, remote_life = os.pipe2(os.O_CLOEXEC)
        control.settimeout(self._deadline)
        places = self._pod.places
        words = [self._pod.id, str(places.simulator), str(places.measurements), str(self._pod.sockets / "cpu.sock")]
        try:
            made = fork_server.ask("cpu", words, [remote.fileno(), remote_life])
        finally:
            remote.close()
            os.close(remote_life)
        if not made:
            control.close()
            os.close(life)
            return
        if self._listener is not None:
            self._reaper.forget(self._listener.fileno())
        self._control, self._life = control, life
        self._reaper.watch(life, lambda: self._later(self._fall_asleep, control))
        for entry in self._known.values():
            self._tell_process(entry, control)
        if self._listener is not None:
            self._tell_process({"do": "serve"}, control, self._listener)

    def _move_in(self) -> None:
        """The platform in this process, for good. Raises coded errors."""
        from enclave_cc.host.shim import preloading  # seldom

        preloading.withdraw_from_merging()
        self._inside = self._pod.make_enclaves()
        for entry in self._known.values():
            self._inside.adopt(entry["container"], bytes.fromhex(entry["identity"]))
        if self._listener is not None:
            self._reaper.forget(self._listener.fileno())
            self._inside.start(self._listener)

    def _drop(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()
            self._reaper.forget(self._life)
            os.close(self._life)

    # --- told by the reaper, in threads, as it must not wait

    def _later(self, step: Any, *words: object) -> None:
        threading.Thread(target=step, args=words, name="cpu", daemon=True).start()

    def _fall_asleep(self, control: socket.socket) -> None:
        """A process has ended: whoever connects next wakes another."""
        with self._guard:
            if control is self._control:
                self._drop()
            self._await_question()

    def _await_question(self) -> None:
        """With the guard held."""
        if self._control is None and self._inside is None and self._listener is not None and not self._closed:
            self._reaper.watch(self._listener.fileno(), lambda: self._later(self._rise))

    def _rise(self) -> None:
        """Somebody has connected."""
        with self._guard:
            if self._control is not None or self._inside is not None or self._closed:
                return
            try:
                self._wake()
                if self._control is None:
                    self._move_in()
            except (OSError, EnclaveCcError):
                self._drop()
            else:
                return
        time.sleep(_PAUSE)  # whoever asks still waits, and would have us try without end
        with self._guard:
            self._await_question()
