"""What the agent knows of each container of its pod. Every id is HOST-AUTHORED.

One lock, held for moments only: nothing waits, computes or does I/O under it but `wait_created`, which lets go of it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from enclave_cc.enclave.agent import container_states
from enclave_cc.enclave.agent.container_states import Event, State
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

if TYPE_CHECKING:
    from enclave_cc.enclave.agent.handovers import Handovers
    from enclave_cc.enclave.image.pull import PulledImage

MAX_CONTAINERS = 256
_ID_LIMIT = 128
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def check_id(container_id: str) -> str:
    """`container_id`, if it is fit for a file name. Raises `PeerError("malformed")`."""
    if not 0 < len(container_id) <= _ID_LIMIT or not set(container_id) <= _ID_CHARACTERS or container_id.startswith("."):
        raise PeerError("malformed", f"{foreign(container_id)!r} is not a container id: 1 to {_ID_LIMIT} of A-Z a-z 0-9 . _ -")
    return container_id


@record
class LayerProgress:
    """`total` and `done` are bytes in the registry; `total` is 0 while unknown."""

    digest: str
    total: int
    done: int
    stage: str


class PullProgress:
    """How far the layers of one pull are. Written by many threads, read by others."""

    __slots__ = ("_cancelled", "_layers", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layers: dict[str, LayerProgress] = {}
        self._cancelled = False

    def report(self, digest: str, total: int, done: int, stage: str) -> None:
        """Raises `PeerError("wrong-state")` when the pull is no longer wanted, which ends it."""
        if self._cancelled:
            raise PeerError("wrong-state", "the container was removed while its image was pulled")
        with self._lock:
            self._layers[digest] = LayerProgress(digest, total, done, stage)

    def cancel(self) -> None:
        self._cancelled = True

    def list(self) -> list[LayerProgress]:
        with self._lock:
            return list(self._layers.values())


class Container:
    """Its members are written under the lock of `Containers`."""

    __slots__ = ("handovers", "id", "image", "progress", "pulled", "state")

    def __init__(self, container_id: str) -> None:
        self.id, self.image = container_id, ""
        self.state = State.NEW
        self.progress = PullProgress()
        self.pulled: PulledImage | None = None
        self.handovers: Handovers | None = None


class Containers:
    """The containers of one pod, by id."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._items: dict[str, Container] = {}

    def begin_pull(self, container_id: str, image: str) -> Container:
        """A new container, or one whose image is pulled again. Raises `PeerError` ("wrong-state", "too-large")."""
        check_id(container_id)
        with self._changed:
            container = self._items.get(container_id)
            if container is None:
                if len(self._items) >= MAX_CONTAINERS:
                    raise PeerError("too-large", f"this pod has {MAX_CONTAINERS} containers already")
                container = self._items[container_id] = Container(container_id)
            container.state = container_states.move(container.state, Event.PULL)
            container.image, container.pulled, container.progress = image, None, PullProgress()
            return container

    def end_pull(self, container: Container, pulled: PulledImage | None) -> None:
        """Done, or with None failed. Raises `PeerError("wrong-state")` when the container was removed meanwhile."""
        with self._changed:
            container.state = container_states.move(container.state, Event.PULL_DONE if pulled else Event.PULL_FAILED)
            container.pulled = pulled
            self._changed.notify_all()

    def create(self, container: Container, handovers: Handovers) -> None:
        """The launch is decided. Raises `PeerError("wrong-state")`."""
        with self._changed:
            container.state = container_states.move(container.state, Event.CREATE)
            container.handovers, container.pulled = handovers, None
            self._changed.notify_all()

    def release(self, container: Container) -> None:
        """The release was made. Raises `PeerError("wrong-state")`."""
        with self._changed:
            container.state = container_states.move(container.state, Event.RELEASE)

    def remove(self, container_id: str) -> bool:
        """Forgets a container, and ends its pull. False when there is none."""
        with self._changed:
            container = self._items.pop(container_id, None)
            if container is None:
                return False
            container.state = container_states.move(container.state, Event.REMOVE)
            container.handovers = container.pulled = None
            container.progress.cancel()
            self._changed.notify_all()
            return True

    def remove_all(self) -> None:
        for container in self.list():
            self.remove(container.id)

    def find(self, container_id: str) -> Container:
        """Raises `PeerError("not-found")`."""
        with self._changed:
            container = self._items.get(container_id)
        if container is None:
            raise PeerError("not-found", f"this pod has no container {foreign(container_id)!r}")
        return container

    def list(self) -> list[Container]:
        with self._changed:
            return list(self._items.values())

    def wait_created(self, container_id: str, deadline: float | None) -> Container:
        """The container, once it is created; app enclaves may start before their image is there.

        `deadline` is on the monotonic clock; None waits for nothing. Raises `PeerError`: "not-found", "wrong-state",
        "deadline", and "handover-refused" when the pull failed.
        """
        with self._changed:
            known: Container | None = None
            while True:
                container = self._items.get(container_id)
                if container is None and known is not None:
                    raise PeerError("not-found", f"container {foreign(container_id)!r} was removed")
                known = container
                state = State.NEW if container is None else container.state
                if container is not None and state in (State.CREATED, State.RELEASED):
                    return container
                if state is State.FAILED:
                    raise PeerError("handover-refused", "the image of this container could not be pulled")
                left = None if deadline is None else deadline - time.monotonic()
                if left is None and container is None:
                    raise PeerError("not-found", f"this pod has no container {foreign(container_id)!r}")
                if left is None:
                    raise PeerError("wrong-state", f"container {foreign(container_id)!r} is not created yet")
                if left <= 0:
                    raise PeerError("deadline", f"container {foreign(container_id)!r} was not created in time")
                self._changed.wait(left)
