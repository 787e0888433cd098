"""The ttrpc services `enclavecc.agent.v1.Agent` and `.Handover`: decode, ask the pod, encode."""

from __future__ import annotations

import threading

from enclave_cc import __version__
from enclave_cc.enclave.agent.startup import Startup
from enclave_cc.transport.ttrpc_server import Call, Services, WithCall
from enclave_cc.wire.pb import agent as messages
from enclave_cc.wire.pb import codec


class AgentService:
    """One handler per method; each runs in the thread of its call. `stopping` is set by Shutdown."""

    def __init__(self, startup: Startup) -> None:
        self._startup = startup
        self.stopping = threading.Event()

    def services(self) -> Services:
        return {
            messages.AGENT_SERVICE: {
                "GetStatus": WithCall(self.get_status),
                "PullImage": WithCall(self.pull_image),
                "GetPullProgress": WithCall(self.get_pull_progress),
                "CreateContainer": WithCall(self.create_container),
                "RemoveContainer": WithCall(self.remove_container),
                "Shutdown": WithCall(self.shutdown),
            },
            messages.HANDOVER_SERVICE: {"Begin": WithCall(self.begin), "Finish": WithCall(self.finish)},
        }

    def get_status(self, call: Call) -> bytes:
        codec.decode(messages.GetStatusRequest, call.payload)
        pod = self._startup.wait(call.deadline)
        identity = pod.platform.identity
        return codec.encode(
            messages.GetStatusResponse(
                version=__version__,
                tee=pod.platform.name,
                simulated=pod.platform.simulated,
                mr_enclave=identity.mr_enclave.hex(),
                mr_signer=identity.mr_signer.hex(),
                kbs_url=pod.configuration.kbs_url,
                attested=self._startup.attested,
                containers=tuple(
                    messages.ContainerStatus(container.id, container.image, container.state.name.lower())
                    for container in pod.containers.list()
                ),
            )
        )

    def pull_image(self, call: Call) -> bytes:
        request = codec.decode(messages.PullImageRequest, call.payload)
        pod = self._startup.wait(call.deadline)
        return codec.encode(pod.pull_image(request.container_id, request.image, call.deadline))

    def get_pull_progress(self, call: Call) -> bytes:
        request = codec.decode(messages.GetPullProgressRequest, call.payload)
        state, layers = self._startup.wait(call.deadline).list_progress(request.container_id)
        reported = tuple(messages.LayerProgress(layer.digest, layer.total, layer.done, layer.stage) for layer in layers)
        return codec.encode(messages.GetPullProgressResponse(state=state.name.lower(), layers=reported))

    def create_container(self, call: Call) -> bytes:
        request = codec.decode(messages.CreateContainerRequest, call.payload)
        self._startup.wait(call.deadline).create_container(request.container_id, request.image, request.overrides)
        return codec.encode(messages.CreateContainerResponse())

    def remove_container(self, call: Call) -> bytes:
        request = codec.decode(messages.RemoveContainerRequest, call.payload)
        pod = self._startup.finished  # before it there was no container
        if pod is not None:
            pod.remove_container(request.container_id)
        return codec.encode(messages.RemoveContainerResponse())

    def shutdown(self, call: Call) -> bytes:
        codec.decode(messages.ShutdownRequest, call.payload)
        self.stopping.set()
        return codec.encode(messages.ShutdownResponse())

    def begin(self, call: Call) -> bytes:
        request = codec.decode(messages.HandoverRequest, call.payload)
        pod = self._startup.wait(call.deadline)
        return _answer(pod.begin_handover(request.container_id, request.message, call.deadline))

    def finish(self, call: Call) -> bytes:
        request = codec.decode(messages.HandoverRequest, call.payload)
        return _answer(self._startup.wait(call.deadline).finish_handover(request.container_id, request.message))


def _answer(message: bytes) -> bytes:
    return codec.encode(messages.HandoverResponse(message))
