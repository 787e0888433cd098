"""One pod's agent: pulls its images, decides its launches, hands over its keys. Arguments are HOST-AUTHORED.

Nothing here holds a lock while it pulls, asks the KBS or attests: calls for other containers, and questions about
this one, go on meanwhile.
"""

from __future__ import annotations

import time

from enclave_cc.enclave.agent import log, settings
from enclave_cc.enclave.agent.container_states import State
from enclave_cc.enclave.agent.containers import Container, Containers, LayerProgress
from enclave_cc.enclave.agent.handovers import Handovers, check_hello
from enclave_cc.enclave.agent.init_data import Configuration
from enclave_cc.enclave.image import pull
from enclave_cc.enclave.image.layer_key import ResourceSource
from enclave_cc.enclave.rootfs.cache import NodeCache
from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.wire.handover.release import Release
from enclave_cc.wire.launch.combination import combine
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.launch.policy import LaunchPolicy
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.pb import agent as messages
from enclave_cc.wire.sgx.identity import EnclaveIdentity

# A caller without a deadline waits this long: poll(2) counts milliseconds in an int, which ends after 24 days.
UNLIMITED = 20 * 86_400.0
_RESOURCES = pull.ResourceUris(settings.SIGNATURE_POLICY_URI, settings.REGISTRY_CREDENTIAL_URI)


class Pod:
    """Safe for many threads. `resources` is the KBS's client; `lifetime` is a handover's, in seconds."""

    def __init__(
        self,
        *,
        platform: Platform,
        resources: ResourceSource,
        configuration: Configuration,
        cache: NodeCache,
        app: EnclaveIdentity,
        measured: settings.Settings,
    ) -> None:
        self.platform = platform
        self.configuration = configuration
        self.containers = Containers()
        self._resources, self._cache, self._app = resources, cache, app
        self._registries = configuration.registries(measured.registry_deadline)
        self._lifetime = measured.handover_lifetime

    def pull_image(self, container_id: str, image: str, deadline: float | None) -> messages.PullImageResponse:
        """Returns when the image is verified, decrypted and sealed. `deadline` is on the monotonic clock.

        Raises what `enclave.image.pull` raises, and `PeerError("wrong-state")` out of order or when the container was
        removed meanwhile.
        """
        reference = Reference.parse(image).with_default_tag()
        container = self.containers.begin_pull(container_id, str(reference))
        started = time.monotonic()
        try:
            pulled = pull.pull_image(
                reference,
                resources=self._resources,
                registries=self._registries,
                cache=self._cache.for_container(container_id),
                progress=lambda digest, done, total, stage: container.progress.report(digest, total, done, stage),
                deadline=UNLIMITED if deadline is None else max(0.0, deadline - started),
                uris=_RESOURCES,
            )
            self.containers.end_pull(container, pulled)
        except BaseException as error:
            self._fail_pull(container, error)
            raise
        layers = container.progress.list()
        downloaded = sum(layer.done for layer in layers if layer.stage != "cached")
        took = round(time.monotonic() - started, 3)
        log.write("info", "image pulled", container=container_id, image=str(reference), bytes=downloaded, seconds=took)
        return messages.PullImageResponse(
            image=str(reference),
            manifest_digest=pulled.manifest_digest,
            layers=len(layers),
            cached_layers=sum(layer.stage == "cached" for layer in layers),
            bytes_downloaded=downloaded,
        )

    def _fail_pull(self, container: Container, error: BaseException) -> None:
        if container.state is State.REMOVED:
            self._cache.release(container.id)  # what this pull pinned after the removal
        elif container.state is State.PULLING:
            self.containers.end_pull(container, None)
        # Our own errors are made to be read by the host; any other text may hold a secret.
        text = str(error) if isinstance(error, EnclaveCcError) else type(error).__name__
        log.write("error", f"image not pulled: {text}", container=container.id, image=container.image)

    def list_progress(self, container_id: str) -> tuple[State, list[LayerProgress]]:
        """Raises `PeerError("not-found")`."""
        container = self.containers.find(container_id)
        return container.state, container.progress.list()

    def create_container(self, container_id: str, image: str, overrides: bytes) -> None:
        """Fixes what the container runs. Raises `PeerError`: "launch-denied", "launch-failed", "wrong-state",
        "not-found", "malformed", "policy-invalid", and what the KBS refuses.

        1. the image is the one that was pulled for this container
        2. the owner's policy allows what the host wants otherwise
        """
        container = self.containers.find(container_id)
        pulled = container.pulled
        if pulled is None:
            raise PeerError("wrong-state", f"the container is {container.state.name.lower()}; its image is to be pulled first")
        # 1
        reference = Reference.parse(image).with_default_tag()
        if reference != pulled.reference:
            raise PeerError("wrong-state", f"the image pulled for this container is {pulled.reference}, not {reference}")
        # 2
        statement = combine(
            pulled.config,
            Overrides.parse(overrides),
            self._fetch_launch_policy(),
            name=pulled.reference.name,
            image=str(pulled.reference),
            manifest_digest=pulled.manifest_digest,
            container_id=container_id,
        )
        release = Release(statement, pulled.rootfs)
        self.containers.create(container, Handovers(container_id, release, self.platform, self._app, lifetime=self._lifetime))
        log.write("info", "container created", container=container_id, image=str(pulled.reference))

    def _fetch_launch_policy(self) -> LaunchPolicy:
        """The owner's, or the strict one when the owner has none."""
        try:
            return LaunchPolicy.parse(self._resources.get(settings.LAUNCH_POLICY_URI))
        except PeerError as error:
            if error.code == "key-missing":
                return LaunchPolicy()
            raise

    def remove_container(self, container_id: str) -> None:
        """Forgets the container and its keys. An unknown one is no error."""
        if self.containers.remove(container_id):
            self._cache.release(container_id)
            log.write("info", "container removed", container=container_id)

    def begin_handover(self, container_id: str, message: bytes, deadline: float | None) -> bytes:
        """The offer for an app's hello. Waits for the container to be created, until `deadline` (monotonic clock)."""
        try:
            check_hello(container_id, message)
        except PeerError:
            self.containers.find(container_id)  # who knows no container learns only that
            raise
        handovers = self.containers.wait_created(container_id, deadline).handovers
        if handovers is None:
            raise PeerError("not-found", "the container was removed")
        return handovers.begin(message)

    def finish_handover(self, container_id: str, message: bytes) -> bytes:
        """The release for an app's proof, once."""
        container = self.containers.find(container_id)
        if container.handovers is None:
            raise PeerError("handover-refused", f"the container is {container.state.name.lower()}")
        try:
            answer = container.handovers.finish(message)
            self.containers.release(container)
        except PeerError as error:
            log.write("error", f"handover refused: {error}", container=container_id)
            raise
        log.write("info", "handed over", container=container_id)
        return answer
