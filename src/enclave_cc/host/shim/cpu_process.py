"""The simulated CPU of one pod as a process: a fork of the fork server, there while the pod's enclaves start and no longer.

It holds what the shim should not keep in memory for hours: cryptography, measured bundles, the quoting enclave. All its
state is which enclaves there are, and that the shim tells it; so the shim (`enclaves.py`) lets it end and makes another
when somebody connects again. Who connects, it sees itself: by SO_PEERCRED and the peer's control group.

Requests of the shim, JSON in a packet each, answered by {} or what is said here, or by {"error": [class, code, what, fix]}:

    {"do": "launch", "container", "group", "directory", "role", "config_id"}      {"identity": what `adopt` takes}
    {"do": "adopt", "container", "group", "identity"}
    {"do": "forget", "container"}
    {"do": "serve"}, with the CPU's listening socket
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.sandbox import cgroups
from enclave_cc.host.sandbox.bundle import read_bundle
from enclave_cc.host.sandbox.enclaves import SimulatedEnclaves
from enclave_cc.host.shim import preloading, surroundings
from enclave_cc.host.shim.enclaves import MESSAGE_LIMIT

_SWITCH_INTERVAL = 0.0005  # as in a supervisor: the quoting enclave's making must not hold up a launch
_IDLE = 3.0  # seconds without a question after which it ends


def serve(words: Sequence[str], descriptors: Sequence[int]) -> None:
    """Until the shim ends, or nobody has asked for a while. `words`: pod, platform's directory, cache of measurements, CPU
    socket's path; `descriptors`: the shim's socket, and one that is open as long as we live.
    """
    preloading.withdraw_from_merging()
    pod, state, measurements, path = words
    surroundings.show_as(["enclave-cc-simulated-cpu", pod])
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _CpuProcess(Path(state), Path(measurements), Path(path)).run(socket.socket(fileno=descriptors[0]))


class _CpuProcess:
    def __init__(self, state: Path, measurements: Path, path: Path) -> None:
        self._groups: dict[str, str] = {}
        self._enclaves = SimulatedEnclaves(self._find, state, path, measurements)
        self._listener: socket.socket | None = None

    def run(self, control: socket.socket) -> None:
        poll = select.poll()
        poll.register(control, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_IDLE * 1000)}
            if control.fileno() in ready:
                data, received, _, _ = socket.recv_fds(control, MESSAGE_LIMIT, 1)
                if not data:
                    return
                for descriptor in received:
                    self._listener = socket.socket(fileno=descriptor)
                    poll.register(self._listener, select.POLLIN)
                control.send(json.dumps(self._answer(json.loads(data))).encode())
            if self._listener is not None and self._listener.fileno() in ready:
                # Accepted by this thread alone, which is also the one that ends: no connection is lost with it.
                with suppress(BlockingIOError):
                    self._enclaves.take(self._listener.accept()[0])
            if not ready and self._listener is not None and not self._enclaves.is_busy():
                return

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._do(request)
        except EnclaveCcError as error:
            return {"error": [type(error).__name__, error.code, error.what, error.fix]}
        except Exception as error:  # noqa: BLE001 - our bug; the start that asked must end, not hang
            return {"error": ["UsageError", "internal", f"the simulated CPU: {type(error).__name__}", None]}

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        verb, container = request["do"], request.get("container", "")
        if verb == "serve":
            threading.Thread(target=self._enclaves.prepare_quoting, name="quoting", daemon=True).start()
        elif verb == "forget":
            self._groups.pop(container, None)
            self._enclaves.forget(container)
        else:
            self._groups[container] = request["group"]
            if verb == "adopt":
                self._enclaves.adopt(container, bytes.fromhex(request["identity"]))
            else:
                bundle = read_bundle(Path(request["directory"]), request["role"])
                self._enclaves.launch(container, bundle, config_id=bytes.fromhex(request["config_id"]))
                return {"identity": self._enclaves.describe(container).hex()}
        return {}

    def _find(self, pid: int) -> str | None:
        """Which container of the pod a process is in: its control group tells."""
        groups = dict(self._groups)
        place = cgroups.find_place(pid, groups.values())
        return next((name for name, group in groups.items() if group == place), None)
