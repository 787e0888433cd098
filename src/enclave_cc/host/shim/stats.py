"""What a container uses, in the messages that containerd expects of each version of control groups."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import cgroups
from enclave_cc.wire.pb import cgroup_metrics as metrics
from enclave_cc.wire.pb import codec

_NO_LIMIT = (1 << 64) - 1


def measure(group: str) -> tuple[str, bytes]:
    """(type, message) of the group at this place in the hierarchy. Raises `UsageError("not-found")` when it is gone."""
    place = group.lstrip("/")
    if cgroups.is_unified():
        directory = cgroups.ROOT / place
        if not directory.is_dir():
            raise UsageError("not-found", "the container's control group is gone")
        return metrics.V2_URL, codec.encode(_measure_v2(directory))
    if not (cgroups.ROOT / "memory" / place).is_dir() and not (cgroups.ROOT / "cpuacct" / place).is_dir():
        raise UsageError("not-found", "the container's control group is gone")
    return metrics.V1_URL, codec.encode(_measure_v1(place))


def _measure_v1(place: str) -> metrics.MetricsV1:
    root = cgroups.ROOT
    pids, memory, cpuacct, cpu, blkio = (root / name / place for name in ("pids", "memory", "cpuacct", "cpu", "blkio"))
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    used, throttled, stat = _table(cpuacct / "cpuacct.stat"), _table(cpu / "cpu.stat"), _table(memory / "memory.stat")
    oom = _table(memory / "memory.oom_control")
    return metrics.MetricsV1(
        pids=metrics.PidsV1(_number(pids / "pids.current"), _number(pids / "pids.max")),
        cpu=metrics.CpuV1(
            metrics.CpuUsageV1(
                total=_number(cpuacct / "cpuacct.usage"),
                kernel=used.get("system", 0) * tick,
                user=used.get("user", 0) * tick,
                per_cpu=tuple(int(word) for word in _text(cpuacct / "cpuacct.usage_percpu").split()),
            ),
            metrics.ThrottleV1(
                throttled.get("nr_periods", 0), throttled.get("nr_throttled", 0), throttled.get("throttled_time", 0)
            ),
        ),
        memory=metrics.MemoryV1(
            **{name: stat.get(_V1_NAMES.get(name, name), 0) for name in metrics.MEMORY_V1_NAMES},
            usage=_entry(memory, "memory"),
            swap=_entry(memory, "memory.memsw"),
            kernel=_entry(memory, "memory.kmem"),
            kernel_tcp=_entry(memory, "memory.kmem.tcp"),
        ),
        blkio=metrics.BlkioV1(
            bytes_recursive=_blkio(blkio / "blkio.throttle.io_service_bytes_recursive"),
            serviced_recursive=_blkio(blkio / "blkio.throttle.io_serviced_recursive"),
        ),
        oom=metrics.OomV1(oom.get("oom_kill_disable", 0), oom.get("under_oom", 0), oom.get("oom_kill", 0)),
    )


_V1_NAMES = {
    "pg_pg_in": "pgpgin", "pg_pg_out": "pgpgout", "pg_fault": "pgfault", "pg_maj_fault": "pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit", "total_pg_pg_in": "total_pgpgin",
    "total_pg_pg_out": "total_pgpgout", "total_pg_fault": "total_pgfault", "total_pg_maj_fault": "total_pgmajfault",
}  # fmt: skip


def _measure_v2(directory: Path) -> metrics.MetricsV2:
    cpu, memory, events = (_table(directory / name) for name in ("cpu.stat", "memory.stat", "memory.events"))
    named = {name: memory.get(_V2_NAMES.get(name, name), 0) for name in metrics.MEMORY_V2_NAMES}
    return metrics.MetricsV2(
        pids=metrics.PidsV1(_number(directory / "pids.current"), _number(directory / "pids.max")),
        cpu=metrics.CpuV2(**{name: cpu.get(name, 0) for name in metrics.CPU_V2_NAMES}),
        memory=metrics.MemoryV2(
            **named,
            usage=_number(directory / "memory.current"),
            usage_limit=_number(directory / "memory.max", _NO_LIMIT),
            swap_usage=_number(directory / "memory.swap.current"),
            swap_limit=_number(directory / "memory.swap.max", _NO_LIMIT),
            max_usage=_number(directory / "memory.peak"),
        ),
        io=metrics.IoV2(_io(directory / "io.stat")),
        events=metrics.MemoryEventsV2(**{name: events.get(name, 0) for name in ("low", "high", "max", "oom", "oom_kill")}),
    )


_V2_NAMES = {"workingset_refault": "workingset_refault_file", "workingset_activate": "workingset_activate_file"}


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


def _number(path: Path, default: int = 0) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else default


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _entry(directory: Path, name: str) -> metrics.MemoryEntryV1:
    def read(kind: str) -> int:
        return _number(directory / f"{name}.{kind}")

    return metrics.MemoryEntryV1(read("limit_in_bytes"), read("usage_in_bytes"), read("max_usage_in_bytes"), read("failcnt"))


def _blkio(path: Path) -> tuple[metrics.BlkioEntryV1, ...]:
    found = re.findall(r"^(\d+):(\d+) (\w+) (\d+)$", _text(path), re.MULTILINE)
    return tuple(metrics.BlkioEntryV1(op=op, major=int(a), minor=int(b), value=int(value)) for a, b, op, value in found)


def _io(path: Path) -> tuple[metrics.IoEntryV2, ...]:
    entries = []
    for line in _text(path).splitlines():
        device, *pairs = line.split()
        values = {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs) if value.isdigit()}
        major, _, minor = device.partition(":")
        if major.isdigit() and minor.isdigit():
            counted = {name: values.get(name, 0) for name in ("rbytes", "wbytes", "rios", "wios")}
            entries.append(metrics.IoEntryV2(int(major), int(minor), **counted))
    return tuple(entries)
