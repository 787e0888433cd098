"""Events reach containerd in the order in which they were published, also over its restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from enclave_cc.host.shim.events import Publisher
from enclave_cc.host.shim.log import Log
from enclave_cc.transport.ttrpc_server import Server
from enclave_cc.wire.pb import codec, shim_events, task


class Containerd:
    """What takes the events."""

    def __init__(self, path: Path) -> None:
        self.taken: list[tuple[str, int]] = []
        self.arrived = threading.Condition()
        self._server = Server(str(path), {shim_events.SERVICE: {shim_events.METHOD: self._take}}, log=lambda _: None)
        self._server.start()

    def _take(self, data: bytes) -> bytes:
        envelope = codec.decode(shim_events.ForwardRequest, data).envelope
        assert envelope is not None and envelope.event is not None
        pid = codec.decode(shim_events.TaskStart, envelope.event.value).pid
        with self.arrived:
            self.taken.append((envelope.topic, pid))
            self.arrived.notify_all()
        return b""

    def wait(self, count: int) -> list[tuple[str, int]]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.taken) >= count, 10)
            return list(self.taken)

    def close(self) -> None:
        self._server.close()


def publisher(path: Path, *, patience: float = 10) -> Publisher:
    return Publisher(str(path), "k8s.io", Log(None), patience=patience)


def test_the_order_holds(short_path: Path) -> None:
    containerd = Containerd(short_path / "c.sock")
    events = publisher(short_path / "c.sock")
    for number in range(200):
        events.publish(shim_events.TaskStart("c", number + 1))
    assert containerd.wait(200) == [("/tasks/start", number + 1) for number in range(200)]
    events.close(5)
    containerd.close()


def test_events_wait_for_a_containerd_that_restarts(short_path: Path) -> None:
    first = Containerd(short_path / "c.sock")
    events = publisher(short_path / "c.sock")
    events.publish(shim_events.TaskStart("c", 1))
    first.wait(1)
    first.close()
    events.publish(shim_events.TaskStart("c", 2))
    events.publish(shim_events.TaskStart("c", 3))
    time.sleep(0.2)
    second = Containerd(short_path / "c.sock")
    with second.arrived:  # the first may come again: whether containerd took it when it died, nobody knows
        assert second.arrived.wait_for(lambda: ("/tasks/start", 3) in second.taken, 10)
    assert second.taken[-2:] == [("/tasks/start", 2), ("/tasks/start", 3)]
    events.close(5)
    second.close()


def test_closing_sends_what_is_left_but_not_for_ever(short_path: Path) -> None:
    containerd = Containerd(short_path / "c.sock")
    events = publisher(short_path / "c.sock")
    for number in range(20):
        events.publish(shim_events.TaskStart("c", number + 1))
    events.close(10)
    assert len(containerd.taken) == 20
    containerd.close()
    events = publisher(short_path / "c.sock", patience=60)
    events.publish(shim_events.TaskStart("c", 1))
    begun = time.monotonic()
    events.close(0.3)
    assert time.monotonic() - begun < 5


def test_without_an_address_nothing_is_sent(short_path: Path) -> None:
    events = Publisher("", "n", Log(None))
    events.publish(shim_events.TaskExit("c", "c", 1, 0, task.Timestamp(1, 2)))
    events.close(1)
