"""The simulated SGX platform of one pod: measures bundles, launches their enclaves, answers their instructions.

The only module of the node that names the simulator. Which container a calling process is in, the kernel says: its
control group. On hardware none of this exists; the loader measures and the CPU answers.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from enclave_cc.crypto.rsa3072 import SigningKey
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.host.sandbox.bundle import Bundle
from enclave_cc.simulator import bundle as measuring
from enclave_cc.simulator.cpu import SimulatedEnclave, SoftwareCpu
from enclave_cc.simulator.platform import Platform
from enclave_cc.simulator.service import CpuService
from enclave_cc.wire.sgx import manifest as enclave_manifest
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.report import ReportBody


class SimulatedEnclaves:
    """The enclaves of one pod, by container. Threads may launch while others ask."""

    def __init__(self, find: Callable[[int], str | None], state: Path, path: Path, measurements: Path) -> None:
        """Loads the platform in `state`, made when there is none. `find`: which container of the pod a process is in.

        Raises `EnvironmentFault`, `PeerError`.
        """
        self._find = find
        self._measurements = measurements
        self._lock = threading.Lock()
        self._enclaves: dict[str, SimulatedEnclave] = {}
        self._cpu = SoftwareCpu(Platform.ensure(state))
        self._service = CpuService(self._cpu, path, self.identify)

    def start(self, listener: socket.socket) -> None:
        """Answers whoever connects, from a thread. Raises `EnvironmentFault`."""
        try:
            self._service.start(listener)
        except OSError as error:
            raise EnvironmentFault("environment", f"the simulated CPU's socket: {error.strerror}") from error
        self._service.prepare_quoting()  # while the agent loads

    def prepare_quoting(self) -> None:
        """Ahead of the first question for a quote, which is waited for."""
        self._service.prepare_quoting()

    def take(self, connection: socket.socket) -> None:
        """Answers one connection, which somebody else accepted, in a thread of its own."""
        self._service.take(connection)

    def is_busy(self) -> bool:
        return self._service.is_busy()

    def launch(self, container: str, bundle: Bundle, *, group: str = "", config_id: bytes = bytes(64)) -> None:
        """Measures the bundle as it lies on disk and launches it as this container's enclave.

        A bundle that was changed does not fit its SIGSTRUCT. Whoever changed it could sign it anew, with a key of
        their own: that is done here, so that the relying parties judge it, as they would have to.
        """
        del group  # `find` knows it
        cache_path = self._measurements.with_name(f"{self._measurements.stem}-{bundle.role}.json")
        cache = measuring.load_cache(cache_path)
        known = dict(cache)
        manifest = measuring.actual_manifest(bundle.root, bundle.make_manifest(), cache).encode()
        if cache != known:
            measuring.save_cache(cache_path, cache)
        try:
            enclave = self._cpu.launch(manifest, bundle.sigstruct, config_id=config_id, debug=bundle.debug)
        except PeerError as error:
            if error.code != "measurement-changed":
                raise
            enclave = self._cpu.launch(manifest, _sign_anew(manifest, bundle), config_id=config_id)
        with self._lock:
            self._enclaves[container] = enclave

    def describe(self, container: str) -> bytes:
        """What EREPORT says of a launched enclave, to `adopt` it elsewhere. Raises `KeyError`."""
        with self._lock:
            return self._enclaves[container].identity.encode()

    def adopt(self, container: str, described: bytes) -> None:
        """An enclave that was launched in another process of this platform. Raises `PeerError("malformed")`."""
        enclave = SimulatedEnclave(self._cpu, ReportBody.parse(described))
        with self._lock:
            self._enclaves[container] = enclave

    def identify(self, pid: int) -> SimulatedEnclave:
        """Raises `PeerError("report-refused")` for a process of no enclave of this pod."""
        container = self._find(pid)
        with self._lock:
            enclave = self._enclaves.get(container) if container is not None else None
        if enclave is None:
            raise PeerError("report-refused", "the asking process is in no enclave of this pod")
        return enclave

    def forget(self, container: str) -> None:
        with self._lock:
            self._enclaves.pop(container, None)

    def close(self) -> None:
        self._service.close()


def _sign_anew(manifest: bytes, bundle: Bundle) -> bytes:
    signed = sigstruct.SigStruct.parse(bundle.sigstruct)
    return sigstruct.sign(
        SigningKey.generate(),
        mr_enclave=enclave_manifest.measure(manifest),
        isv_prod_id=signed.isv_prod_id,
        isv_svn=signed.isv_svn,
        date=20250101,
    ).encode()
