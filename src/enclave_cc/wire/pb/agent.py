"""The messages of agent.proto, and the names of its services. Every request field is HOST-AUTHORED."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.pb import codec

AGENT_SERVICE = "enclavecc.agent.v1.Agent"
HANDOVER_SERVICE = "enclavecc.agent.v1.Handover"


@record
class GetStatusRequest:
    pass


@record
class ContainerStatus:
    container_id: str = codec.string(1)
    image: str = codec.string(2)
    state: str = codec.string(3)


@record
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


@record
class PullImageRequest:
    container_id: str = codec.string(1)
    image: str = codec.string(2)


@record
class PullImageResponse:
    image: str = codec.string(1)
    manifest_digest: str = codec.string(2)
    layers: int = codec.uint64(3)
    cached_layers: int = codec.uint64(4)
    bytes_downloaded: int = codec.uint64(5)


@record
class GetPullProgressRequest:
    container_id: str = codec.string(1)


@record
class LayerProgress:
    """`total`, `done`: bytes in the registry."""

    digest: str = codec.string(1)
    total: int = codec.uint64(2)
    done: int = codec.uint64(3)
    stage: str = codec.string(4)


@record
class GetPullProgressResponse:
    state: str = codec.string(1)
    layers: tuple[LayerProgress, ...] = codec.message(2, LayerProgress, repeated=True)


@record
class CreateContainerRequest:
    """`overrides`: JSON of `wire.launch.overrides.Overrides`."""

    container_id: str = codec.string(1)
    image: str = codec.string(2)
    overrides: bytes = codec.bytestring(3)


@record
class CreateContainerResponse:
    pass


@record
class RemoveContainerRequest:
    container_id: str = codec.string(1)


@record
class RemoveContainerResponse:
    pass


@record
class ShutdownRequest:
    pass


@record
class ShutdownResponse:
    pass


@record
class HandoverRequest:
    """`message`: one of the app's messages of docs/formats/handover.md."""

    container_id: str = codec.string(1)
    message: bytes = codec.bytestring(2)


@record
class HandoverResponse:
    """`message`: one of the agent's messages of docs/formats/handover.md."""

    message: bytes = codec.bytestring(1)
