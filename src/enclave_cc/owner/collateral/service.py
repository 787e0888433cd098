"""A collateral service behind a cache, so that no attester waits for it while there is anything to judge by.

no entry, or expired     wait for one fetch, however many wait; its failure is remembered for `retry` seconds
older than `refresh`     answer what there is, fetch in the background
otherwise                answer what there is
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from enclave_cc.crypto.x509 import Certificate
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.owner.collateral.source import Found
from enclave_cc.owner.verifier.collateral import name_platform, verify_collateral
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.record import record
from enclave_cc.wire.sgx.collateral import Collateral, TcbInfo

KEPT = 1024


class CollateralService(Protocol):
    """Where bundles come from. Safe for many threads."""

    def fetch(self, fmspc: str, ca: str) -> Collateral:
        """Raises `PeerError("collateral-refused")`."""
        ...

    def close(self) -> None: ...


@record
class Freshness:
    """Seconds: from when on collateral is fetched again, how long a failure is believed, how long an attester waits."""

    refresh: float = 3600.0
    retry: float = 30.0
    deadline: float = 10.0


class _Entry:
    __slots__ = ("failed", "failed_at", "fetched_at", "found", "pending")

    def __init__(self) -> None:
        self.found: Found | None = None
        self.fetched_at = float("-inf")
        self.failed: PeerError | None = None
        self.failed_at = float("-inf")
        self.pending: Future[Found] | None = None


class CachedService:
    """A `CollateralSource`. `report` is told of every fetch that failed: (platform, why)."""

    def __init__(
        self,
        service: CollateralService,
        freshness: Freshness | None = None,
        *,
        report: Callable[[str, str], None] = lambda _where, _why: None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._freshness = freshness or Freshness()
        self._report = report
        self._now = now
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[bytes, bytes, str], _Entry] = OrderedDict()
        self._threads: set[threading.Thread] = set()

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        """As `CollateralSource`. Raises `PeerError("collateral-refused")` when there is nothing and none can be had."""
        key = (root.certificate, origin.fmspc, origin.pck_ca)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                found, age = entry.found, self._clock() - entry.fetched_at
                if found is not None and at <= found.end and age < self._freshness.refresh:
                    return found
        # Only a platform that the root vouches for is worth a request, or a place in the cache.
        origin.check_chain(at)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
                if len(self._entries) > KEPT:
                    self._entries.popitem(last=False)
            if entry.pending is None and self._clock() - entry.failed_at >= self._freshness.retry:
                entry.pending = self._start(entry, origin, root, at)
            if entry.found is not None and at <= entry.found.end:
                return entry.found
            pending, failed = entry.pending, entry.failed
        if pending is None:
            raise PeerError("collateral-refused", failed.what if failed else "there is no collateral")
        try:
            return pending.result(self._freshness.deadline)
        except TimeoutError as error:
            raise PeerError("collateral-refused", "the collateral service did not answer in time") from error
        except PeerError as error:  # one instance for all who wait: each raises its own
            raise PeerError(error.code, error.what, error.fix) from None

    def close(self) -> None:
        """Waits for fetches that run; they are bounded by the service's deadline."""
        with self._lock:
            running = list(self._threads)
        for thread in running:
            thread.join()
        self._service.close()

    def _start(self, entry: _Entry, origin: Origin, root: TrustedRoot, at: int) -> Future[Found]:
        """One fetch in a thread of its own: with the lock held."""
        future: Future[Found] = Future()
        thread = threading.Thread(target=self._fetch, args=(entry, future, origin, root, at), name="collateral", daemon=True)
        self._threads.add(thread)
        thread.start()
        return future

    def _fetch(self, entry: _Entry, future: Future[Found], origin: Origin, root: TrustedRoot, at: int) -> None:
        try:
            found = self._judge(self._service.fetch(origin.fmspc.hex(), origin.pck_ca), entry.found, origin, root, at)
        except BaseException as error:  # noqa: BLE001 (somebody waits for this future)
            failure = error if isinstance(error, PeerError) else PeerError("collateral-refused", _describe(error))
            self._report(f"{root.name} {origin.fmspc.hex()} {origin.pck_ca}", failure.what)
            with self._lock:
                entry.failed, entry.failed_at, entry.pending = failure, self._clock(), None
                self._threads.discard(threading.current_thread())
            future.set_exception(failure)
            return
        with self._lock:
            entry.found, entry.fetched_at, entry.failed, entry.pending = found, self._clock(), None, None
            self._threads.discard(threading.current_thread())
        future.set_result(found)

    def _judge(self, collateral: Collateral, known: Found | None, origin: Origin, root: TrustedRoot, at: int) -> Found:
        """What is cached was verified: a broken answer must not replace a good one, nor an older one a newer."""
        try:
            if name_platform(collateral) != (root.certificate, origin.fmspc, origin.pck_ca):
                raise PeerError("collateral-refused", "the collateral service answers for another platform")
            trusted = Certificate.parse(root.certificate)
            pce_id = TcbInfo.parse(collateral.tcb_info).pce_id
            verify_collateral(collateral, root=trusted, pck_ca=origin.pck_ca_certificate, fmspc=origin.fmspc, pce_id=pce_id, at=at)
        except PeerError as error:
            raise PeerError("collateral-refused", f"the collateral service's answer: {error.what}") from error
        found = Found.read(collateral)
        if known is not None and at <= known.end and _issued(known) > _issued(found):
            return known
        return found


def _issued(found: Found) -> int:
    return TcbInfo.parse(found.collateral.tcb_info).issue_date


def _describe(error: BaseException) -> str:
    return error.what if isinstance(error, EnclaveCcError) else f"the collateral service failed ({type(error).__name__})"
