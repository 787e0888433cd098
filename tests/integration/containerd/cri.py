"""A small client of the Kubernetes Container Runtime Interface v1, over grpcio and our own codec.

It calls as the kubelet does: `Cri(socket)` has one method per RPC, and `pod(...)`, `container(...)` give the messages with
what the kubelet always sets. Errors are grpc's own (`grpc.RpcError`, with `code()` and `details()`).
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any, TypeVar

import grpc
from cri_messages import (
    AttachRequest,
    AuthConfig,
    Capability,
    Container,
    ContainerConfig,
    ContainerFilter,
    ContainerId,
    ContainerMetadata,
    ContainerSecurityContext,
    ContainerStats,
    ContainerStatsResponse,
    ContainerStatus,
    ContainerStatusRequest,
    ContainerStatusResponse,
    CreateContainerRequest,
    DnsConfig,
    Empty,
    ExecRequest,
    ExecSyncRequest,
    ExecSyncResponse,
    Image,
    ImageRequest,
    ImageSpec,
    ImageStatusResponse,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxPodSandboxConfig,
    ListContainersRequest,
    ListContainersResponse,
    ListImagesResponse,
    ListPodSandboxResponse,
    Namespace,
    NamespaceOption,
    PodSandbox,
    PodSandboxConfig,
    PodSandboxId,
    PodSandboxMetadata,
    PodSandboxStatus,
    PodSandboxStatusRequest,
    PodSandboxStatusResponse,
    PortForwardRequest,
    PortMapping,
    PullImageRequest,
    PullImageResponse,
    RunPodSandboxRequest,
    SandboxSecurityContext,
    StatusRequest,
    StatusResponse,
    StopContainerRequest,
    StreamingUrl,
    UpdateContainerResourcesRequest,
    VersionRequest,
    VersionResponse,
)

from enclave_cc import record
from enclave_cc.wire.pb import codec

T = TypeVar("T")
_RUNTIME = "/runtime.v1.RuntimeService/"
_IMAGE = "/runtime.v1.ImageService/"
_numbers = itertools.count(1)


class Cri:
    """`deadline`: seconds for each call."""

    def __init__(self, socket: Path, *, deadline: float = 120.0) -> None:
        self.deadline = deadline
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=[("grpc.enable_http_proxy", 0)])

    def close(self) -> None:
        self._channel.close()

    def _call(self, path: str, request: object, answer: type[T], timeout: float | None = None) -> T:
        method = self._channel.unary_unary(path, request_serializer=codec.encode, response_deserializer=lambda b: b)
        return codec.decode(answer, method(request, timeout=timeout or self.deadline, wait_for_ready=True))

    # --- pods

    def version(self) -> VersionResponse:
        return self._call(_RUNTIME + "Version", VersionRequest("v1"), VersionResponse)

    def status(self) -> StatusResponse:
        return self._call(_RUNTIME + "Status", StatusRequest(), StatusResponse)

    def run_pod(self, config: PodSandboxConfig, handler: str = "", *, timeout: float | None = None) -> str:
        return self._call(_RUNTIME + "RunPodSandbox", RunPodSandboxRequest(config, handler), PodSandboxId, timeout).pod_sandbox_id

    def stop_pod(self, pod: str) -> None:
        self._call(_RUNTIME + "StopPodSandbox", PodSandboxId(pod), Empty)

    def remove_pod(self, pod: str) -> None:
        self._call(_RUNTIME + "RemovePodSandbox", PodSandboxId(pod), Empty)

    def end_pod(self, pod: str) -> None:
        """Stop and remove, as the kubelet does with a deleted pod."""
        self.stop_pod(pod)
        self.remove_pod(pod)

    def pod_status(self, pod: str) -> PodSandboxStatus:
        found = self._call(_RUNTIME + "PodSandboxStatus", PodSandboxStatusRequest(pod), PodSandboxStatusResponse).status
        assert found is not None
        return found

    def pod_information(self, pod: str) -> dict[str, str]:
        return self._call(_RUNTIME + "PodSandboxStatus", PodSandboxStatusRequest(pod, True), PodSandboxStatusResponse).info

    def list_pods(self) -> tuple[PodSandbox, ...]:
        return self._call(_RUNTIME + "ListPodSandbox", Empty(), ListPodSandboxResponse).items

    # --- containers

    def create(self, pod: str, config: ContainerConfig, sandbox: PodSandboxConfig, *, timeout: float | None = None) -> str:
        request = CreateContainerRequest(pod, config, sandbox)
        return self._call(_RUNTIME + "CreateContainer", request, ContainerId, timeout).container_id

    def start(self, container: str, *, timeout: float | None = None) -> None:
        self._call(_RUNTIME + "StartContainer", ContainerId(container), Empty, timeout)

    def stop(self, container: str, timeout: int = 10) -> None:
        """`timeout`: seconds from the stop signal to SIGKILL; 0 kills at once."""
        self._call(_RUNTIME + "StopContainer", StopContainerRequest(container, timeout), Empty)

    def remove(self, container: str) -> None:
        self._call(_RUNTIME + "RemoveContainer", ContainerId(container), Empty)

    def list_containers(self, pod: str = "") -> tuple[Container, ...]:
        request = ListContainersRequest(ContainerFilter(pod_sandbox_id=pod))
        return self._call(_RUNTIME + "ListContainers", request, ListContainersResponse).containers

    def container_status(self, container: str) -> ContainerStatus:
        found = self._call(_RUNTIME + "ContainerStatus", ContainerStatusRequest(container), ContainerStatusResponse).status
        assert found is not None
        return found

    def container_information(self, container: str) -> dict[str, str]:
        return self._call(_RUNTIME + "ContainerStatus", ContainerStatusRequest(container, True), ContainerStatusResponse).info

    def stats(self, container: str) -> ContainerStats:
        found = self._call(_RUNTIME + "ContainerStats", ContainerId(container), ContainerStatsResponse).stats
        assert found is not None
        return found

    def update(self, container: str, resources: LinuxContainerResources) -> None:
        self._call(_RUNTIME + "UpdateContainerResources", UpdateContainerResourcesRequest(container, resources), Empty)

    def reopen_log(self, container: str) -> None:
        self._call(_RUNTIME + "ReopenContainerLog", ContainerId(container), Empty)

    def exec_sync(self, container: str, *command: str, timeout: int = 30) -> ExecSyncResponse:
        return self._call(_RUNTIME + "ExecSync", ExecSyncRequest(container, command, timeout), ExecSyncResponse)

    def exec_url(self, container: str, *command: str, tty: bool = False, stdin: bool = False) -> str:
        """Where the stream of `kubectl exec` is served."""
        request = ExecRequest(container, command, tty, stdin, True, not tty)
        return self._call(_RUNTIME + "Exec", request, StreamingUrl).url

    def attach_url(self, container: str, *, tty: bool = False, stdin: bool = False) -> str:
        request = AttachRequest(container, stdin, tty, True, not tty)
        return self._call(_RUNTIME + "Attach", request, StreamingUrl).url

    def port_forward_url(self, pod: str, *ports: int) -> str:
        """Where the stream of `kubectl port-forward` is served."""
        return self._call(_RUNTIME + "PortForward", PortForwardRequest(pod, ports), StreamingUrl).url

    # --- images

    def pull(self, image: str, sandbox: PodSandboxConfig | None = None, handler: str = "", secret: AuthConfig | None = None) -> str:
        request = PullImageRequest(ImageSpec(image, runtime_handler=handler), secret, sandbox)
        return self._call(_IMAGE + "PullImage", request, PullImageResponse).image_ref

    def image_status(self, image: str) -> Image | None:
        return self._call(_IMAGE + "ImageStatus", ImageRequest(ImageSpec(image)), ImageStatusResponse).image

    def list_images(self) -> tuple[Image, ...]:
        return self._call(_IMAGE + "ListImages", Empty(), ListImagesResponse).images

    def remove_image(self, image: str) -> None:
        self._call(_IMAGE + "RemoveImage", ImageRequest(ImageSpec(image)), Empty)


def pod(
    name: str = "",
    *,
    logs: Path | str = "",
    host_network: bool = False,
    host_pid: bool = False,
    shared_pid: bool = False,
    privileged: bool = False,
    hostname: str | None = None,
    namespace: str = "default",
    annotations: dict[str, str] | None = None,
    dns: DnsConfig | None = None,
    ports: tuple[PortMapping, ...] = (),
    parent: str,
    sysctls: dict[str, str] | None = None,
) -> PodSandboxConfig:
    """A pod of a fresh name and uid. CRI has no "own process namespace per pod": CONTAINER is Kubernetes' default."""
    name = name or f"pod-{next(_numbers)}"
    uid = os.urandom(8).hex()
    options = NamespaceOption(
        network=Namespace.NODE if host_network else Namespace.POD,
        pid=Namespace.NODE if host_pid else Namespace.POD if shared_pid else Namespace.CONTAINER,
        ipc=Namespace.POD,
    )
    security = SandboxSecurityContext(namespace_options=options, privileged=privileged)
    return PodSandboxConfig(
        metadata=PodSandboxMetadata(name, uid, namespace, 0),
        hostname="" if host_network else name if hostname is None else hostname,
        log_directory=str(logs),
        dns_config=dns,
        port_mappings=ports,
        labels={"io.kubernetes.pod.name": name, "io.kubernetes.pod.uid": uid, "io.kubernetes.pod.namespace": namespace},
        annotations=annotations or {},
        linux=LinuxPodSandboxConfig(cgroup_parent=f"{parent}/{uid}", security_context=security, sysctls=sysctls or {}),
    )


def container(
    image: str,
    *,
    sandbox: PodSandboxConfig,
    name: str = "main",
    attempt: int = 0,
    command: tuple[str, ...] = (),
    args: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    resources: LinuxContainerResources | None = None,
    add: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    **fields: Any,
) -> ContainerConfig:
    """A container as the kubelet asks for it; `fields` are those of ContainerConfig or of its security context."""
    known = {member.name for member in record.fields(ContainerSecurityContext)}
    security = {key: fields.pop(key) for key in list(fields) if key in known}
    pod_security = sandbox.linux.security_context if sandbox.linux else None
    security.setdefault("namespace_options", pod_security.namespace_options if pod_security else None)
    if add or drop:
        security["capabilities"] = Capability(add, drop)
    return ContainerConfig(
        metadata=ContainerMetadata(name, attempt),
        image=ImageSpec(image),
        command=command,
        args=args,
        envs=tuple(KeyValue(key, value.encode()) for key, value in (env or {}).items()),
        log_path=f"{name}_{attempt}.log",
        linux=LinuxContainerConfig(resources or LinuxContainerResources(cpu_shares=2), ContainerSecurityContext(**security)),
        **fields,
    )
