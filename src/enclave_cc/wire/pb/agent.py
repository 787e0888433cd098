"""The messages of agent.proto, and the names of its services. Every request field is HOST-AUTHORED."""

from __future__ import annotations

from dataclasses import dataclass

from enclave_cc.wire.pb import codec

AGENT_SERVICE = "enclavecc.agent.v1.Agent"
HANDOVER_SERVICE = "enclavecc.agent.v1.Handover"


@dataclass(frozen=True, slots=True)
class GetStatusRequest:
    pass


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    container_id: str = codec.string(1)
    image: str = codec.string(2)
    state: str = codec.string(3)


@dataclass(frozen=True, slots=True)
class GetStatusResponse:
    """`mr_enclave`, `mr_signer`: 64 hex digits."""

    version: str = codec.string(1)
    tee: str = codec.string(2)
    simulated: bool = codec.boolean(3)
    mr_enclave: str = codec.string(4)
    mr_signer: str = codec.string(5)
    kbs_url: str = codec.string(6)
    attested: bool = codec.boolean(7)
    containers: tuple[ContainerStatus, ...] = codec.message(8, ContainerStatus, repeated=True)


@dataclass(frozen=True, slots=True)
class PullImageRequest:
    container_id: str = codec.string(1)
    image: str = codec.string(2)


@dataclass(frozen=True, slots=True)
class PullImageResponse:
    image: str = codec.string(1)
    manifest_digest: str = codec.string(2)
    layers: int = codec.uint64(3)
    cached_layers: int = codec.uint64(4)
    bytes_downloaded: int = codec.uint64(5)


@dataclass(frozen=True, slots=True)
class GetPullProgressRequest:
    container_id: str = codec.string(1)


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """`total`, `done`: bytes in the registry."""

    digest: str = codec.string(1)
    total: int = codec.uint64(2)
    done: int = codec.uint64(3)
    stage: str = codec.string(4)


@dataclass(frozen=True, slots=True)
class GetPullProgressResponse:
    state: str = codec.string(1)
    layers: tuple[LayerProgress, ...] = codec.message(2, LayerProgress, repeated=True)


@dataclass(frozen=True, slots=True)
class CreateContainerRequest:
    """`overrides`: JSON of `wire.launch.overrides.Overrides`."""

    container_id: str = codec.string(1)
    image: str = codec.string(2)
    overrides: bytes = codec.bytestring(3)


@dataclass(frozen=True, slots=True)
class CreateContainerResponse:
    pass


@dataclass(frozen=True, slots=True)
class RemoveContainerRequest:
    container_id: str = codec.string(1)


@dataclass(frozen=True, slots=True)
class RemoveContainerResponse:
    pass


@dataclass(frozen=True, slots=True)
class ShutdownRequest:
    pass


@dataclass(frozen=True, slots=True)
class ShutdownResponse:
    pass


@dataclass(frozen=True, slots=True)
class HandoverRequest:
    """`message`: one of the app's messages of docs/formats/handover.md."""

    container_id: str = codec.string(1)
    message: bytes = codec.bytestring(2)


@dataclass(frozen=True, slots=True)
class HandoverResponse:
    """`message`: one of the agent's messages of docs/formats/handover.md."""

    message: bytes = codec.bytestring(1)
