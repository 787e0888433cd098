"""Prometheus metrics (text format 0.0.4), by hand: counters and histograms whose every series is known beforehand.

A label's values are declared with the metric, and anything else counts as "other". So no path, name or text of a client
can become a label, the number of series is fixed, and all of them fit an array that worker processes share. Names are
Trustee's where the meaning is.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager

from enclave_cc import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BYTES = (32, 128, 512, 2048, 8192, 32768, 131072, 524288, 2097152)
STAGES = ("verify", "appraise", "sign", "policy", "fetch", "encrypt", "audit")
STATUSES = ("200", "400", "401", "403", "404", "405", "408", "413", "429", "500", "503")
TEES = ("sgx", "sample", "sampledevice")

_ROWS = 512  # processes that may share an array


class _Metric:
    """Base of both kinds. `width`: slots of one series."""

    kind = ""
    width = 1

    def __init__(self, name: str, text: str, labels: Mapping[str, Sequence[str]] | None = None) -> None:
        self.name = name
        self.text = text
        self.labels = {label: tuple(dict.fromkeys((*values, OTHER))) for label, values in (labels or {}).items()}
        self.series = list(itertools.product(*self.labels.values()))
        self._index = {values: number for number, values in enumerate(self.series)}
        self._lock = threading.Lock()
        self._slots: MutableSequence[float] = array("d", bytes(8 * self.size))
        self._start = 0

    @property
    def size(self) -> int:
        return len(self.series) * self.width

    def place(self, slots: MutableSequence[float], start: int) -> None:
        self._slots, self._start = slots, start

    def _find(self, values: tuple[str, ...]) -> int:
        number = self._index.get(values)
        if number is None:
            known = self.labels.values()
            number = self._index[tuple(v if v in allowed else OTHER for v, allowed in zip(values, known, strict=True))]
        return self._start + number * self.width

    def _name(self, values: Iterable[str], suffix: str = "", **more: str) -> str:
        pairs = [*zip(self.labels, values, strict=True), *more.items()]
        shown = ",".join(f'{label}="{value}"' for label, value in pairs)
        return f"{self.name}{suffix}{{{shown}}}" if shown else f"{self.name}{suffix}"

    def render(self, slots: Sequence[float]) -> Iterator[str]:
        """Lines over this metric's slots, summed over all processes. Series that never counted are left out."""
        raise NotImplementedError


class Counter(_Metric):
    kind = "counter"

    def add(self, *values: str) -> None:
        slot = self._find(values)
        with self._lock:
            self._slots[slot] += 1

    def render(self, slots: Sequence[float]) -> Iterator[str]:
        for number, values in enumerate(self.series):
            if slots[number] or not self.labels:
                yield f"{self._name(values)} {slots[number]:g}"


class Gauge(Counter):
    """A number that also falls: the sum over processes of what each says."""

    kind = "gauge"

    def change(self, amount: int) -> None:
        with self._lock:
            self._slots[self._start] += amount


class Histogram(_Metric):
    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Mapping[str, Sequence[str]] | None = None) -> None:
        self.bounds = tuple(bounds)
        self.width = len(self.bounds) + 2  # the buckets, +Inf, the sum
        super().__init__(name, text, labels)

    def observe(self, value: float, *values: str) -> None:
        slot = self._find(values)
        bucket = slot + bisect_left(self.bounds, value)
        with self._lock:
            self._slots[bucket] += 1
            self._slots[slot + self.width - 1] += value

    @contextmanager
    def time(self, *values: str) -> Iterator[None]:
        """Observes how long the block took, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - start, *values)

    def render(self, slots: Sequence[float]) -> Iterator[str]:
        for number, values in enumerate(self.series):
            row = slots[number * self.width : (number + 1) * self.width]
            counts = list(itertools.accumulate(row[:-1]))
            if not counts[-1] and self.labels:
                continue
            for bound, count in zip((*(f"{bound:g}" for bound in self.bounds), "+Inf"), counts, strict=True):
                yield f"{self._name(values, '_bucket', le=bound)} {count:g}"
            yield f"{self._name(values, '_sum')} {row[-1]:.9g}"
            yield f"{self._name(values, '_count')} {counts[-1]:g}"


class Metrics:
    """All metrics of a KBS. `routes`: the templates of its paths; `tees`: kinds of evidence; `shared`: see `SharedSlots`."""

    def __init__(self, routes: Iterable[str] = (), tees: Iterable[str] = TEES, *, shared: SharedSlots | None = None) -> None:
        by_tee, routes = {"tee_type": tuple(tees)}, tuple(dict.fromkeys(routes))
        # HTTP
        self.requests = Counter("kbs_http_requests_total", "Requests by route and status", {"route": routes, "status": STATUSES})
        self.duration = Histogram(
            "kbs_http_request_duration_seconds", "From the whole request to its answer", SECONDS, {"route": routes}
        )
        self.request_size = Histogram("kbs_http_request_size_bytes", "Sizes of request bodies", BYTES)
        self.response_size = Histogram("kbs_http_response_size_bytes", "Sizes of answers", BYTES)
        self.active = Gauge("kbs_http_active_connections", "Requests that are being answered")
        self.limited = Counter(
            "kbs_http_rate_limited_total", "Requests turned away", {"limit": ("address", "refusals", "admin", "queue")}
        )
        # RCAR
        self.auth_requests = Counter("kbs_auth_requests_total", "Handshakes begun")
        self.auth_successes = Counter("kbs_auth_successes_total", "Challenges given")
        self.auth_errors = Counter("kbs_auth_errors_total", "Handshakes refused")
        self.attestations = Counter("kbs_attestation_requests_total", "Attestations received")
        self.attestation_successes = Counter("kbs_attestation_successes_total", "Attestations accepted", by_tee)
        self.attestation_failures = Counter("kbs_attestation_failures_total", "Attestations whose evidence was refused", by_tee)
        self.attestation_errors = Counter("kbs_attestation_errors_total", "Attestations that could not be judged")
        self.stages = Histogram("kbs_stage_duration_seconds", "Where the time of a request goes", SECONDS, {"stage": STAGES})
        # release
        self.policy_evaluations = Counter("kbs_policy_evaluations_total", "Release policies evaluated")
        self.policy_approvals = Counter("kbs_policy_approvals_total", "Requests that the release policy allowed")
        self.policy_violations = Counter("kbs_policy_violations_total", "Requests that the release policy denied")
        self.policy_errors = Counter("kbs_policy_errors_total", "Release policies that failed to evaluate")
        self.reads = Counter("kbs_resource_reads_total", "Resources released to attesters")
        self.writes = Counter("kbs_resource_writes_total", "Resources written by administrators")
        self.deletes = Counter("kbs_resource_deletes_total", "Resources deleted by administrators")
        self._all = [member for member in vars(self).values() if isinstance(member, _Metric)]
        self._size = sum(metric.size for metric in self._all)
        self._shared = shared
        own = array("d", bytes(8 * self._size)) if shared is None else shared.claim(self._size)
        self._own: MutableSequence[float] = own
        start = 0
        for metric in self._all:
            metric.place(own, start)
            start += metric.size

    def render(self) -> str:
        """The exposition text, summed over the processes that share."""
        slots: Sequence[float] = self._own if self._shared is None else self._shared.sum(self._size)
        lines = [f'# HELP kbs_build_info What runs.\n# TYPE kbs_build_info gauge\nkbs_build_info{{version="{__version__}"}} 1']
        start = 0
        for metric in self._all:
            lines.append(f"# HELP {metric.name} {metric.text}.\n# TYPE {metric.name} {metric.kind}")
            lines.extend(metric.render(slots[start : start + metric.size]))
            start += metric.size
        return "\n".join(lines) + "\n"


class SharedSlots:
    """An array in a file that several processes inherit: each adds in a row of its own, whoever renders sums all rows.

    A row belongs to the process that holds its lock; when that has ended, another goes on in it, so that counters never
    fall. A gauge of a process that was killed keeps its last value until its row is taken over.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    @staticmethod
    def create() -> int:
        """The descriptor of an empty, anonymous file, for processes to inherit."""
        return os.memfd_create("kbs-metrics", 0)

    def claim(self, size: int) -> MutableSequence[float]:
        """A row of `size` slots of this process's own."""
        stride = 8 * (size + 1)  # the last slot says that the row was used
        if os.fstat(self._descriptor).st_size < stride * _ROWS:
            os.ftruncate(self._descriptor, stride * _ROWS)  # the same for all who share: they are one program
        self._map = mmap.mmap(self._descriptor, stride * _ROWS)
        view = memoryview(self._map).cast("d")
        for row in range(_ROWS):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
            except OSError:
                continue
            own = view[row * (size + 1) : (row + 1) * (size + 1)]
            own[size] = 1
            return own  # type: ignore[return-value]  # what is used of a list, a memoryview of numbers has
        return array("d", bytes(8 * size))  # too many processes: this one counts for itself

    def sum(self, size: int) -> list[float]:
        if self._map is None:
            return [0.0] * size
        view = memoryview(self._map).cast("d")
        rows = [view[row * (size + 1) : (row + 1) * (size + 1)] for row in range(_ROWS) if view[(row + 1) * (size + 1) - 1]]
        return [sum(column) for column in zip(*(row[:size] for row in rows), strict=True)]
