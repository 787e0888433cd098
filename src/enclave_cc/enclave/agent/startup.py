"""Makes the pod's state in a thread, while the socket listens already.

The imports (TLS, decryption, decompression), the platform, the KBS handshake: a second on a cold node. The host finds
the agent listening after tens of milliseconds; a call that needs what is not there yet waits for just that, and a
start that failed is the answer to every call, with its own code, instead of a process that is gone.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from enclave_cc.enclave.agent import log
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError

if TYPE_CHECKING:
    from enclave_cc.enclave.agent.pod import Pod

# Seconds. The thread that talks to the KBS must not wait 5 ms, Python's own choice, for one that imports, at each answer.
_SWITCH_INTERVAL = 0.0005


class Startup:
    """`make` gives the pod; it may call `attest_ahead` as soon as it can reach the KBS."""

    def __init__(self, make: Callable[[Startup], Pod]) -> None:
        self._make = make
        self._started = time.monotonic()
        self._done = threading.Event()
        self._pod: Pod | None = None
        self._error: EnclaveCcError | None = None
        self._attested = False
        self._switching = sys.getswitchinterval()

    def start(self) -> None:
        """Begins; returns at once."""
        sys.setswitchinterval(_SWITCH_INTERVAL)
        threading.Thread(target=self._run, name="startup", daemon=True).start()

    def attest_ahead(self, attest: Callable[[], None]) -> None:
        """Runs the handshake beside what `make` has still to do: it waits for the network, and imports do not."""
        threading.Thread(target=self._attest, args=(attest,), name="attest", daemon=True).start()

    @property
    def attested(self) -> bool:
        """Whether a KBS has accepted this enclave."""
        return self._attested

    @property
    def finished(self) -> Pod | None:
        """The pod if it is there, without waiting."""
        return self._pod

    def wait(self, deadline: float | None) -> Pod:
        """The pod. `deadline` is on the monotonic clock. Raises why the start failed, or `PeerError("deadline")`."""
        if not self._done.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            raise PeerError("deadline", "the agent enclave did not start in time")
        if self._error is not None:
            raise self._error.with_traceback(None)  # one instance for many threads
        if self._pod is None:
            raise EnvironmentFault("internal", "the agent enclave has no state")
        return self._pod

    def _run(self) -> None:
        try:
            self._pod = self._make(self)
        except EnclaveCcError as error:
            self._error = error
        except Exception as bug:  # noqa: BLE001 - it must become the answer to the calls that wait
            place = bug.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = "?" if place is None else f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
            self._error = EnvironmentFault("internal", f"the agent enclave did not start: {type(bug).__name__} at {where}")
        gc.enable()  # off since the first instruction, for the imports (start.py)
        sys.setswitchinterval(self._switching)
        self._done.set()
        if self._error is not None:
            log.write("error", f"start failed: {self._error}")
            return
        self._log("ready")

    def _attest(self, attest: Callable[[], None]) -> None:
        try:
            attest()
        except EnclaveCcError as error:
            # The pull will meet it again and report it; here it only costs the head start.
            log.write("warning", f"not attested yet: {error}")
        else:
            self._attested = True
            self._log("attested")

    def _log(self, message: str) -> None:
        log.write("info", message, seconds=round(time.monotonic() - self._started, 3))
