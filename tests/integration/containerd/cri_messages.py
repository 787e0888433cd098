"""The part of the Kubernetes Container Runtime Interface v1 that the suites use, for our protobuf codec.

Source: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto. Fields that no suite reads or sets are left out; the codec skips them.
"""

from __future__ import annotations

from enum import IntEnum

from enclave_cc.record import record
from enclave_cc.wire.pb import codec


class Namespace(IntEnum):
    """NamespaceMode."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class SandboxState(IntEnum):
    READY = 0
    NOTREADY = 1


class ContainerState(IntEnum):
    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


class Seccomp(IntEnum):
    """SecurityProfile.ProfileType."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


@record
class Empty:
    pass


@record
class VersionRequest:
    version: str = codec.string(1)


@record
class VersionResponse:
    version: str = codec.string(1)
    runtime_name: str = codec.string(2)
    runtime_version: str = codec.string(3)
    runtime_api_version: str = codec.string(4)


@record
class RuntimeCondition:
    type: str = codec.string(1)
    status: bool = codec.boolean(2)
    reason: str = codec.string(3)
    message: str = codec.string(4)


@record
class RuntimeStatus:
    conditions: tuple[RuntimeCondition, ...] = codec.message(1, RuntimeCondition, repeated=True)


@record
class StatusRequest:
    verbose: bool = codec.boolean(1)


@record
class RuntimeHandlerFeatures:
    recursive_read_only_mounts: bool = codec.boolean(1)
    user_namespaces: bool = codec.boolean(2)


@record
class RuntimeHandler:
    name: str = codec.string(1)
    features: RuntimeHandlerFeatures | None = codec.message(2, RuntimeHandlerFeatures)


@record
class StatusResponse:
    status: RuntimeStatus | None = codec.message(1, RuntimeStatus)
    info: dict[str, str] = codec.string_map(2)
    runtime_handlers: tuple[RuntimeHandler, ...] = codec.message(3, RuntimeHandler, repeated=True)


@record
class Int64Value:
    value: int = codec.int64(1)


@record
class UInt64Value:
    value: int = codec.uint64(1)


# --- pods


@record
class PortMapping:
    protocol: int = codec.int32(1)
    container_port: int = codec.int32(2)
    host_port: int = codec.int32(3)
    host_ip: str = codec.string(4)


@record
class DnsConfig:
    servers: tuple[str, ...] = codec.string(1, repeated=True)
    searches: tuple[str, ...] = codec.string(2, repeated=True)
    options: tuple[str, ...] = codec.string(3, repeated=True)


@record
class NamespaceOption:
    network: int = codec.int32(1)
    pid: int = codec.int32(2)
    ipc: int = codec.int32(3)
    target_id: str = codec.string(4)


@record
class SecurityProfile:
    profile_type: int = codec.int32(1)
    localhost_ref: str = codec.string(2)


@record
class SandboxSecurityContext:
    namespace_options: NamespaceOption | None = codec.message(1, NamespaceOption)
    run_as_user: Int64Value | None = codec.message(3, Int64Value)
    readonly_rootfs: bool = codec.boolean(4)
    privileged: bool = codec.boolean(6)
    seccomp: SecurityProfile | None = codec.message(9, SecurityProfile)


@record
class LinuxPodSandboxConfig:
    cgroup_parent: str = codec.string(1)
    security_context: SandboxSecurityContext | None = codec.message(2, SandboxSecurityContext)
    sysctls: dict[str, str] = codec.string_map(3)


@record
class PodSandboxMetadata:
    name: str = codec.string(1)
    uid: str = codec.string(2)
    namespace: str = codec.string(3)
    attempt: int = codec.uint32(4)


@record
class PodSandboxConfig:
    metadata: PodSandboxMetadata | None = codec.message(1, PodSandboxMetadata)
    hostname: str = codec.string(2)
    log_directory: str = codec.string(3)
    dns_config: DnsConfig | None = codec.message(4, DnsConfig)
    port_mappings: tuple[PortMapping, ...] = codec.message(5, PortMapping, repeated=True)
    labels: dict[str, str] = codec.string_map(6)
    annotations: dict[str, str] = codec.string_map(7)
    linux: LinuxPodSandboxConfig | None = codec.message(8, LinuxPodSandboxConfig)


@record
class RunPodSandboxRequest:
    config: PodSandboxConfig | None = codec.message(1, PodSandboxConfig)
    runtime_handler: str = codec.string(2)


@record
class PodSandboxId:
    """StopPodSandboxRequest, RemovePodSandboxRequest, PodSandboxStatusRequest, RunPodSandboxResponse."""

    pod_sandbox_id: str = codec.string(1)


@record
class PodSandboxNetworkStatus:
    ip: str = codec.string(1)


@record
class PodSandboxStatus:
    id: str = codec.string(1)
    metadata: PodSandboxMetadata | None = codec.message(2, PodSandboxMetadata)
    state: int = codec.int32(3)
    created_at: int = codec.int64(4)
    network: PodSandboxNetworkStatus | None = codec.message(5, PodSandboxNetworkStatus)
    labels: dict[str, str] = codec.string_map(7)
    annotations: dict[str, str] = codec.string_map(8)
    runtime_handler: str = codec.string(9)


@record
class PodSandboxStatusRequest:
    pod_sandbox_id: str = codec.string(1)
    verbose: bool = codec.boolean(2)


@record
class PodSandboxStatusResponse:
    status: PodSandboxStatus | None = codec.message(1, PodSandboxStatus)
    info: dict[str, str] = codec.string_map(2)


@record
class PodSandbox:
    id: str = codec.string(1)
    metadata: PodSandboxMetadata | None = codec.message(2, PodSandboxMetadata)
    state: int = codec.int32(3)
    created_at: int = codec.int64(4)
    labels: dict[str, str] = codec.string_map(5)
    runtime_handler: str = codec.string(7)


@record
class ListPodSandboxResponse:
    items: tuple[PodSandbox, ...] = codec.message(1, PodSandbox, repeated=True)


# --- containers


@record
class ImageSpec:
    image: str = codec.string(1)
    annotations: dict[str, str] = codec.string_map(2)
    user_specified_image: str = codec.string(18)
    runtime_handler: str = codec.string(19)


@record
class KeyValue:
    key: str = codec.string(1)
    value: bytes = codec.bytestring(2)


@record
class Mount:
    container_path: str = codec.string(1)
    host_path: str = codec.string(2)
    readonly: bool = codec.boolean(3)
    propagation: int = codec.int32(5)


@record
class LinuxContainerResources:
    cpu_period: int = codec.int64(1)
    cpu_quota: int = codec.int64(2)
    cpu_shares: int = codec.int64(3)
    memory_limit_in_bytes: int = codec.int64(4)
    oom_score_adj: int = codec.int64(5)
    cpuset_cpus: str = codec.string(6)
    cpuset_mems: str = codec.string(7)
    unified: dict[str, str] = codec.string_map(9)
    memory_swap_limit_in_bytes: int = codec.int64(10)


@record
class Capability:
    add_capabilities: tuple[str, ...] = codec.string(1, repeated=True)
    drop_capabilities: tuple[str, ...] = codec.string(2, repeated=True)


@record
class ContainerSecurityContext:
    capabilities: Capability | None = codec.message(1, Capability)
    privileged: bool = codec.boolean(2)
    namespace_options: NamespaceOption | None = codec.message(3, NamespaceOption)
    run_as_user: Int64Value | None = codec.message(5, Int64Value)
    run_as_username: str = codec.string(6)
    readonly_rootfs: bool = codec.boolean(7)
    supplemental_groups: tuple[int, ...] = codec.int64(8, repeated=True)
    no_new_privs: bool = codec.boolean(11)
    run_as_group: Int64Value | None = codec.message(12, Int64Value)
    masked_paths: tuple[str, ...] = codec.string(13, repeated=True)
    readonly_paths: tuple[str, ...] = codec.string(14, repeated=True)
    seccomp: SecurityProfile | None = codec.message(15, SecurityProfile)


@record
class LinuxContainerConfig:
    resources: LinuxContainerResources | None = codec.message(1, LinuxContainerResources)
    security_context: ContainerSecurityContext | None = codec.message(2, ContainerSecurityContext)


@record
class ContainerMetadata:
    name: str = codec.string(1)
    attempt: int = codec.uint32(2)


@record
class ContainerConfig:
    metadata: ContainerMetadata | None = codec.message(1, ContainerMetadata)
    image: ImageSpec | None = codec.message(2, ImageSpec)
    command: tuple[str, ...] = codec.string(3, repeated=True)
    args: tuple[str, ...] = codec.string(4, repeated=True)
    working_dir: str = codec.string(5)
    envs: tuple[KeyValue, ...] = codec.message(6, KeyValue, repeated=True)
    mounts: tuple[Mount, ...] = codec.message(7, Mount, repeated=True)
    labels: dict[str, str] = codec.string_map(9)
    annotations: dict[str, str] = codec.string_map(10)
    log_path: str = codec.string(11)
    stdin: bool = codec.boolean(12)
    stdin_once: bool = codec.boolean(13)
    tty: bool = codec.boolean(14)
    linux: LinuxContainerConfig | None = codec.message(15, LinuxContainerConfig)


@record
class CreateContainerRequest:
    pod_sandbox_id: str = codec.string(1)
    config: ContainerConfig | None = codec.message(2, ContainerConfig)
    sandbox_config: PodSandboxConfig | None = codec.message(3, PodSandboxConfig)


@record
class ContainerId:
    """The requests of one container that carry nothing else, and CreateContainerResponse."""

    container_id: str = codec.string(1)


@record
class StopContainerRequest:
    container_id: str = codec.string(1)
    timeout: int = codec.int64(2)


@record
class ContainerFilter:
    id: str = codec.string(1)
    pod_sandbox_id: str = codec.string(3)


@record
class ListContainersRequest:
    filter: ContainerFilter | None = codec.message(1, ContainerFilter)


@record
class Container:
    id: str = codec.string(1)
    pod_sandbox_id: str = codec.string(2)
    metadata: ContainerMetadata | None = codec.message(3, ContainerMetadata)
    image: ImageSpec | None = codec.message(4, ImageSpec)
    image_ref: str = codec.string(5)
    state: int = codec.int32(6)


@record
class ListContainersResponse:
    containers: tuple[Container, ...] = codec.message(1, Container, repeated=True)


@record
class ContainerStatusRequest:
    container_id: str = codec.string(1)
    verbose: bool = codec.boolean(2)


@record
class ContainerStatus:
    """Times in nanoseconds since 1970."""

    id: str = codec.string(1)
    metadata: ContainerMetadata | None = codec.message(2, ContainerMetadata)
    state: int = codec.int32(3)
    created_at: int = codec.int64(4)
    started_at: int = codec.int64(5)
    finished_at: int = codec.int64(6)
    exit_code: int = codec.int32(7)
    image: ImageSpec | None = codec.message(8, ImageSpec)
    image_ref: str = codec.string(9)
    reason: str = codec.string(10)
    message: str = codec.string(11)
    labels: dict[str, str] = codec.string_map(12)
    mounts: tuple[Mount, ...] = codec.message(14, Mount, repeated=True)
    log_path: str = codec.string(15)


@record
class ContainerStatusResponse:
    status: ContainerStatus | None = codec.message(1, ContainerStatus)
    info: dict[str, str] = codec.string_map(2)


@record
class CpuUsage:
    timestamp: int = codec.int64(1)
    usage_core_nano_seconds: UInt64Value | None = codec.message(2, UInt64Value)


@record
class MemoryUsage:
    timestamp: int = codec.int64(1)
    working_set_bytes: UInt64Value | None = codec.message(2, UInt64Value)
    usage_bytes: UInt64Value | None = codec.message(4, UInt64Value)


@record
class ContainerAttributes:
    id: str = codec.string(1)


@record
class ContainerStats:
    attributes: ContainerAttributes | None = codec.message(1, ContainerAttributes)
    cpu: CpuUsage | None = codec.message(2, CpuUsage)
    memory: MemoryUsage | None = codec.message(3, MemoryUsage)


@record
class ContainerStatsResponse:
    stats: ContainerStats | None = codec.message(1, ContainerStats)


@record
class UpdateContainerResourcesRequest:
    container_id: str = codec.string(1)
    linux: LinuxContainerResources | None = codec.message(2, LinuxContainerResources)


@record
class ExecSyncRequest:
    container_id: str = codec.string(1)
    cmd: tuple[str, ...] = codec.string(2, repeated=True)
    timeout: int = codec.int64(3)


@record
class ExecSyncResponse:
    stdout: bytes = codec.bytestring(1)
    stderr: bytes = codec.bytestring(2)
    exit_code: int = codec.int32(3)


@record
class ExecRequest:
    container_id: str = codec.string(1)
    cmd: tuple[str, ...] = codec.string(2, repeated=True)
    tty: bool = codec.boolean(3)
    stdin: bool = codec.boolean(4)
    stdout: bool = codec.boolean(5)
    stderr: bool = codec.boolean(6)


@record
class AttachRequest:
    container_id: str = codec.string(1)
    stdin: bool = codec.boolean(2)
    tty: bool = codec.boolean(3)
    stdout: bool = codec.boolean(4)
    stderr: bool = codec.boolean(5)


@record
class PortForwardRequest:
    pod_sandbox_id: str = codec.string(1)
    port: tuple[int, ...] = codec.int32(2, repeated=True)


@record
class StreamingUrl:
    """ExecResponse, AttachResponse, PortForwardResponse."""

    url: str = codec.string(1)


# --- images


@record
class ImageRequest:
    """ImageStatusRequest, RemoveImageRequest."""

    image: ImageSpec | None = codec.message(1, ImageSpec)


@record
class AuthConfig:
    """A pull secret, as the kubelet hands it on."""

    username: str = codec.string(1)
    password: str = codec.string(2)


@record
class PullImageRequest:
    image: ImageSpec | None = codec.message(1, ImageSpec)
    auth: AuthConfig | None = codec.message(2, AuthConfig)
    sandbox_config: PodSandboxConfig | None = codec.message(3, PodSandboxConfig)


@record
class PullImageResponse:
    image_ref: str = codec.string(1)


@record
class Image:
    id: str = codec.string(1)
    repo_tags: tuple[str, ...] = codec.string(2, repeated=True)
    repo_digests: tuple[str, ...] = codec.string(3, repeated=True)
    size: int = codec.uint64(4)
    uid: Int64Value | None = codec.message(5, Int64Value)
    username: str = codec.string(6)


@record
class ImageStatusResponse:
    image: Image | None = codec.message(1, Image)


@record
class ListImagesResponse:
    images: tuple[Image, ...] = codec.message(1, Image, repeated=True)
