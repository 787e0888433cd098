"""What the kubelet does with a pod, over the CRI client: run, wait, read logs, end. Not a test; a part that tests share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cri
import daemon
import grpc
from cri_messages import ContainerState, ContainerStatus, PodSandboxConfig

# The control group of all pods, and of this test run alone.
PARENT = f"/enclave-cc-test-{os.urandom(4).hex()}"
RUNC = "runc"
OURS = "enclave-cc"


def wait_ready(client: cri.Cri) -> None:
    """Until CRI answers: after a start of containerd it first looks for its pods."""

    def answers() -> bool:
        try:
            client.list_pods()
        except grpc.RpcError:
            return False
        return True

    wait_until(answers)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.03)


@dataclass
class Kubelet:
    """Pods of one runtime handler with one image; `close` ends those that a test left."""

    node: daemon.Node
    cri: cri.Cri
    logs: Path
    handler: str
    image: str
    pods: list[Pod] = field(default_factory=list)

    def run_pod(self, **options: Any) -> Pod:
        """A ready pod; `options` are those of `cri.pod`."""
        config = cri.pod(logs=self.logs / os.urandom(4).hex(), parent=PARENT, **options)
        found = Pod(self, config, self.cri.run_pod(config, self.handler))
        self.pods.append(found)
        return found

    def close(self) -> None:
        for found in list(self.pods):
            with suppress(grpc.RpcError):
                found.cri.end_pod(found.id)
            with suppress(AssertionError):
                found.remove_groups()


@dataclass
class Pod:
    kubelet: Kubelet
    config: PodSandboxConfig
    id: str
    attempts: dict[str, int] = field(default_factory=dict)

    @property
    def cri(self) -> cri.Cri:
        return self.kubelet.cri

    def create(self, *command: str, name: str = "main", **fields: Any) -> str:
        """A created container; `fields` are those of `cri.container`. A name used again is a restart: a further attempt."""
        attempt = self.attempts[name] = self.attempts.get(name, -1) + 1
        image = fields.pop("image", self.kubelet.image)
        config = cri.container(image, sandbox=self.config, name=name, attempt=attempt, command=command, **fields)
        return self.cri.create(self.id, config, self.config)

    def start(self, *command: str, **fields: Any) -> str:
        container = self.create(*command, **fields)
        self.cri.start(container)
        return container

    def shell(self, script: str, **fields: Any) -> str:
        """Starts /bin/sh with a script."""
        return self.start("/bin/sh", "-c", script, **fields)

    def run(self, script: str, **fields: Any) -> tuple[int, str]:
        """Runs a script to its end; its exit code and what it wrote to stdout."""
        container = self.shell(script, **fields)
        status = self.wait(container)
        return status.exit_code, self.output(container)

    def wait(self, container: str, seconds: float = 30) -> ContainerStatus:
        """The status of a container that ended."""
        found = self.cri.container_status(container)
        until = time.monotonic() + seconds
        while found.state != ContainerState.EXITED:
            assert time.monotonic() < until, found
            time.sleep(0.03)
            found = self.cri.container_status(container)
        return found

    def records(self, container: str) -> list[tuple[str, str, str]]:
        """(stream, tag, text) of each line of the container's log, in the CRI log format."""
        path = Path(self.cri.container_status(container).log_path)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [(words[1], words[2], words[3]) for words in (line.split(" ", 3) for line in lines)]

    def output(self, container: str, stream: str = "stdout") -> str:
        """What the container wrote, with the marks of partial lines taken out."""
        return "".join(text + ("" if tag == "P" else "\n") for name, tag, text in self.records(container) if name == stream)

    def spec(self, container: str) -> dict[str, Any]:
        """The OCI runtime specification that containerd made for it."""
        information = json.loads(self.cri.container_information(container)["info"])
        return dict(information["runtimeSpec"])

    def exec(self, container: str, script: str, timeout: int = 30) -> tuple[int, str, str]:
        done = self.cri.exec_sync(container, "/bin/sh", "-c", script, timeout=timeout)
        return done.exit_code, done.stdout.decode(), done.stderr.decode()

    def end(self) -> None:
        self.cri.end_pod(self.id)
        self.remove_groups()
        if self in self.kubelet.pods:
            self.kubelet.pods.remove(self)

    def remove_groups(self) -> None:
        """The pod's own control groups are the kubelet's: whoever left one below makes this fail."""
        assert self.config.linux is not None
        for group in Path("/sys/fs/cgroup").glob(f"*{self.config.linux.cgroup_parent}"):
            wait_until(lambda g=group: remove_group(g), 5)


def remove_parents() -> None:
    """The control groups of all pods of this run, once there are none."""
    for parent in Path("/sys/fs/cgroup").glob(f"*{PARENT}"):
        for group in sorted((p for p in parent.rglob("*") if p.is_dir()), reverse=True):
            remove_group(group)
        remove_group(parent)


def remove_group(group: Path) -> bool:
    """Whether it is gone. It stays while processes end in it, or while it has groups below."""
    try:
        group.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
