"""The messages of cgroup_metrics.proto: io.containerd.cgroups.v1.Metrics and v2.Metrics, as far as we measure."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.pb import codec

V1_URL = "io.containerd.cgroups.v1.Metrics"
V2_URL = "io.containerd.cgroups.v2.Metrics"


@record
class PidsV1:
    """PidsStat of both versions."""

    current: int = codec.uint64(1)
    limit: int = codec.uint64(2)


@record
class CpuUsageV1:
    """Nanoseconds."""

    total: int = codec.uint64(1)
    kernel: int = codec.uint64(2)
    user: int = codec.uint64(3)
    per_cpu: tuple[int, ...] = codec.uint64(4, repeated=True)


@record
class ThrottleV1:
    periods: int = codec.uint64(1)
    throttled_periods: int = codec.uint64(2)
    throttled_time: int = codec.uint64(3)


@record
class CpuV1:
    usage: CpuUsageV1 | None = codec.message(1, CpuUsageV1)
    throttling: ThrottleV1 | None = codec.message(2, ThrottleV1)


@record
class MemoryEntryV1:
    limit: int = codec.uint64(1)
    usage: int = codec.uint64(2)
    max: int = codec.uint64(3)
    failcnt: int = codec.uint64(4)


@record(kw_only=True)
class MemoryV1:
    cache: int = codec.uint64(1)
    rss: int = codec.uint64(2)
    rss_huge: int = codec.uint64(3)
    mapped_file: int = codec.uint64(4)
    dirty: int = codec.uint64(5)
    writeback: int = codec.uint64(6)
    pg_pg_in: int = codec.uint64(7)
    pg_pg_out: int = codec.uint64(8)
    pg_fault: int = codec.uint64(9)
    pg_maj_fault: int = codec.uint64(10)
    inactive_anon: int = codec.uint64(11)
    active_anon: int = codec.uint64(12)
    inactive_file: int = codec.uint64(13)
    active_file: int = codec.uint64(14)
    unevictable: int = codec.uint64(15)
    hierarchical_memory_limit: int = codec.uint64(16)
    hierarchical_swap_limit: int = codec.uint64(17)
    total_cache: int = codec.uint64(18)
    total_rss: int = codec.uint64(19)
    total_rss_huge: int = codec.uint64(20)
    total_mapped_file: int = codec.uint64(21)
    total_dirty: int = codec.uint64(22)
    total_writeback: int = codec.uint64(23)
    total_pg_pg_in: int = codec.uint64(24)
    total_pg_pg_out: int = codec.uint64(25)
    total_pg_fault: int = codec.uint64(26)
    total_pg_maj_fault: int = codec.uint64(27)
    total_inactive_anon: int = codec.uint64(28)
    total_active_anon: int = codec.uint64(29)
    total_inactive_file: int = codec.uint64(30)
    total_active_file: int = codec.uint64(31)
    total_unevictable: int = codec.uint64(32)
    usage: MemoryEntryV1 | None = codec.message(33, MemoryEntryV1)
    swap: MemoryEntryV1 | None = codec.message(34, MemoryEntryV1)
    kernel: MemoryEntryV1 | None = codec.message(35, MemoryEntryV1)
    kernel_tcp: MemoryEntryV1 | None = codec.message(36, MemoryEntryV1)


MEMORY_V1_NAMES = (
    "cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pg_pg_in", "pg_pg_out", "pg_fault", "pg_maj_fault",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "hierarchical_memory_limit",
    "hierarchical_swap_limit", "total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty",
    "total_writeback", "total_pg_pg_in", "total_pg_pg_out", "total_pg_fault", "total_pg_maj_fault", "total_inactive_anon",
    "total_active_anon", "total_inactive_file", "total_active_file", "total_unevictable",
)  # fmt: skip


@record
class BlkioEntryV1:
    op: str = codec.string(1)
    device: str = codec.string(2)
    major: int = codec.uint64(3)
    minor: int = codec.uint64(4)
    value: int = codec.uint64(5)


@record
class BlkioV1:
    bytes_recursive: tuple[BlkioEntryV1, ...] = codec.message(1, BlkioEntryV1, repeated=True)
    serviced_recursive: tuple[BlkioEntryV1, ...] = codec.message(2, BlkioEntryV1, repeated=True)


@record
class OomV1:
    oom_kill_disable: int = codec.uint64(1)
    under_oom: int = codec.uint64(2)
    oom_kill: int = codec.uint64(3)


@record
class MetricsV1:
    pids: PidsV1 | None = codec.message(2, PidsV1)
    cpu: CpuV1 | None = codec.message(3, CpuV1)
    memory: MemoryV1 | None = codec.message(4, MemoryV1)
    blkio: BlkioV1 | None = codec.message(5, BlkioV1)
    oom: OomV1 | None = codec.message(9, OomV1)


@record(kw_only=True)
class CpuV2:
    usage_usec: int = codec.uint64(1)
    user_usec: int = codec.uint64(2)
    system_usec: int = codec.uint64(3)
    nr_periods: int = codec.uint64(4)
    nr_throttled: int = codec.uint64(5)
    throttled_usec: int = codec.uint64(6)


CPU_V2_NAMES = (
    "usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec",
)  # fmt: skip


@record(kw_only=True)
class MemoryV2:
    anon: int = codec.uint64(1)
    file: int = codec.uint64(2)
    kernel_stack: int = codec.uint64(3)
    slab: int = codec.uint64(4)
    sock: int = codec.uint64(5)
    shmem: int = codec.uint64(6)
    file_mapped: int = codec.uint64(7)
    file_dirty: int = codec.uint64(8)
    file_writeback: int = codec.uint64(9)
    anon_thp: int = codec.uint64(10)
    inactive_anon: int = codec.uint64(11)
    active_anon: int = codec.uint64(12)
    inactive_file: int = codec.uint64(13)
    active_file: int = codec.uint64(14)
    unevictable: int = codec.uint64(15)
    slab_reclaimable: int = codec.uint64(16)
    slab_unreclaimable: int = codec.uint64(17)
    pgfault: int = codec.uint64(18)
    pgmajfault: int = codec.uint64(19)
    workingset_refault: int = codec.uint64(20)
    workingset_activate: int = codec.uint64(21)
    workingset_nodereclaim: int = codec.uint64(22)
    pgrefill: int = codec.uint64(23)
    pgscan: int = codec.uint64(24)
    pgsteal: int = codec.uint64(25)
    pgactivate: int = codec.uint64(26)
    pgdeactivate: int = codec.uint64(27)
    pglazyfree: int = codec.uint64(28)
    pglazyfreed: int = codec.uint64(29)
    thp_fault_alloc: int = codec.uint64(30)
    thp_collapse_alloc: int = codec.uint64(31)
    usage: int = codec.uint64(32)
    usage_limit: int = codec.uint64(33)
    swap_usage: int = codec.uint64(34)
    swap_limit: int = codec.uint64(35)
    max_usage: int = codec.uint64(36)


MEMORY_V2_NAMES = (
    "anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
    "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable",
    "pgfault", "pgmajfault", "workingset_refault", "workingset_activate", "workingset_nodereclaim", "pgrefill", "pgscan",
    "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc",
)  # fmt: skip


@record
class IoEntryV2:
    major: int = codec.uint64(1)
    minor: int = codec.uint64(2)
    rbytes: int = codec.uint64(3)
    wbytes: int = codec.uint64(4)
    rios: int = codec.uint64(5)
    wios: int = codec.uint64(6)


@record
class IoV2:
    usage: tuple[IoEntryV2, ...] = codec.message(1, IoEntryV2, repeated=True)


@record(kw_only=True)
class MemoryEventsV2:
    low: int = codec.uint64(1)
    high: int = codec.uint64(2)
    max: int = codec.uint64(3)
    oom: int = codec.uint64(4)
    oom_kill: int = codec.uint64(5)


@record
class MetricsV2:
    pids: PidsV1 | None = codec.message(1, PidsV1)
    cpu: CpuV2 | None = codec.message(2, CpuV2)
    memory: MemoryV2 | None = codec.message(4, MemoryV2)
    io: IoV2 | None = codec.message(6, IoV2)
    events: MemoryEventsV2 | None = codec.message(8, MemoryEventsV2)
