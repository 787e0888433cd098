"""Pods on containerd: ours against io.containerd.runc.v2 on the same containerd, in the same run.

Ours twice: as it is installed, with the node's fork server, and with each shim started by itself.

- start: RunPodSandbox, CreateContainer and StartContainer until the workload's first byte is in its log, image cached.
  Ours makes two enclaves meanwhile, attests to the KBS over HTTPS, checks the signature, has keys released and mounts.
- idle memory: PSS of the shims at 20 pods of each kind with one container each.
- ttrpc: State calls per second by one client of ours to either shim, Go's server against ours.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/integration/containerd"))

import cri as clients
import daemon
from kubelet import OURS, RUNC, Kubelet, Pod, wait_until

import testbed as testbeds
from bench.memory import proportional_set_size
from bench.report import print_table
from enclave_cc.host.sandbox import control_client
from enclave_cc.transport import ttrpc
from enclave_cc.wire.pb import codec, task

_IDLE = 12.0  # seconds after which threads and processes that had nothing to do have ended
STAGES = ("RunPodSandbox", "CreateContainer", "StartContainer", "first output")
PLAIN = "enclave-cc, plain start"
SHIMS = {RUNC: "containerd-shim-runc-v2", OURS: "containerd-shim-rune-v2", PLAIN: "containerd-shim-rune-v2"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench containerd", description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--pods", type=int, default=20)
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    try:
        with testbeds.running(directory / "s") as testbed:
            configuration = directory / "config.toml"
            configuration.write_text(testbed.configuration.read_text() + '[network]\nagent = "host"\n')
            with daemon.running(directory / "c", testbed.registry_host, configuration=configuration) as node:
                return measure(testbed, node, directory, options.repeat, options.pods)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure(testbed: testbeds.Testbed, node: daemon.Node, directory: Path, repeat: int, pods: int) -> int:
    root = testbeds.busybox_root(directory / "root")
    source = testbeds.make_image(directory / "layout", "pod", root, "--config.cmd", "/bin/sh")
    encrypted = testbed.publish(source, "pod", "--allow", "all")
    (root / "ordinary").write_text("containerd takes images of the same layers for one\n")
    plain = f"{testbed.registry_host}/plain:latest"
    daemon.push_layout(testbeds.make_image(directory / "layout", "plain", root, "--config.cmd", "/bin/sh"), plain)
    cri = clients.Cri(node.address)
    kubelets = {}
    for name, handler, image in ((RUNC, RUNC, plain), (OURS, OURS, encrypted), (PLAIN, OURS, encrypted)):
        cri.pull(image)
        kubelets[name] = Kubelet(node, cri, directory / "logs", handler, image)
    try:
        compare_starts(testbed, kubelets, repeat)
        compare_idle(node, kubelets, pods)
    finally:
        for kubelet in kubelets.values():
            kubelet.close()
        cri.close()
    return 0


# --- start


def start(kubelet: Kubelet) -> tuple[Pod, list[float]]:
    """A pod, and the seconds from the first call to the end of each stage."""
    began = time.perf_counter()
    reached = []
    pod = kubelet.run_pod(host_network=False)
    reached.append(time.perf_counter() - began)
    container = pod.create("/bin/echo", "first")
    reached.append(time.perf_counter() - began)
    log = Path(pod.config.log_directory) / "main_0.log"
    pod.cri.start(container)
    reached.append(time.perf_counter() - began)
    while not (log.exists() and log.stat().st_size):
        time.sleep(0.0005)
    reached.append(time.perf_counter() - began)
    return pod, reached


def boot_stages(testbed: testbeds.Testbed) -> dict[str, int]:
    """Milliseconds after boot init's start, as it told them."""
    for path in (testbed.run_directory / "pods").rglob("status.json"):
        status = control_client.read_status(path)
        if status is not None and status.stages:
            return dict(status.stages)
    return {}


def compare_starts(testbed: testbeds.Testbed, kubelets: dict[str, Kubelet], repeat: int) -> None:
    found: dict[str, list[list[float]]] = {name: [] for name in kubelets}
    boots: list[dict[str, int]] = []
    for number in range(repeat + 1):
        for name, kubelet in kubelets.items():
            kubelet.node.write_launcher(forked=name != PLAIN)
            pod, reached = start(kubelet)
            if number:  # the first of each fills caches
                found[name].append(reached)
                if name == OURS:
                    boots.append(boot_stages(testbed))
            pod.end()
    rows: list[list[object]] = []
    for index, stage in enumerate(STAGES):
        medians = {h: statistics.median(r[index] - (r[index - 1] if index else 0) for r in found[h]) * 1e3 for h in found}
        rows.append([stage, *medians.values(), medians[OURS] / max(medians[RUNC], 1e-3), medians[PLAIN] / max(medians[RUNC], 1e-3)])
    wholes = {h: statistics.median(r[-1] for r in found[h]) * 1e3 for h in found}
    rows.append(["whole", *wholes.values(), wholes[OURS] / wholes[RUNC], wholes[PLAIN] / wholes[RUNC]])
    print_table([f"ms, median of {repeat}", *found, "ratio", "ratio, plain start"], rows)
    print("of it, boot init (median, ms after its start):")
    for stage in boots[0] if boots else ():
        print(f"  {stage:<24} {statistics.median(b[stage] for b in boots if stage in b):7.1f}")
    print_ceiling("pod to first output", wholes[OURS] / wholes[RUNC], 3)
    print_ceiling("with a plain start", wholes[PLAIN] / wholes[RUNC], 3)
    print()


def print_ceiling(name: str, ratio: float, aim: float) -> None:
    """One line: the aim, what was reached, and by how much it is missed if it is."""
    told = "reached" if ratio <= aim else f"over by a factor of {ratio / aim:.2f}"
    print(f"{name}: {ratio:.2f}x, aim at most {aim:g}x: {told}", flush=True)


# --- idle


def shim_processes(node: daemon.Node, name: str) -> list[Path]:
    """The shims of the node, and for ours as installed the fork server and the simulated CPUs that are awake."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (directory / "cmdline").read_bytes()
            shared = name == OURS and (b"\0fork-server\0" in line or line.startswith(b"enclave-cc-simulated-cpu"))
            if shared or (SHIMS[name].encode() in line and str(node.address).encode() in line):
                found.append(directory)
    return found


def compare_idle(node: daemon.Node, kubelets: dict[str, Kubelet], pods: int) -> None:
    rows: list[list[object]] = []
    sizes, rates = {}, {}
    for name, kubelet in kubelets.items():
        node.write_launcher(forked=name != PLAIN)
        for _ in range(pods):
            pod = kubelet.run_pod()
            container = pod.shell("echo up; exec sleep 3000")
            wait_until(lambda p=pod, c=container: p.output(c) == "up\n")
        time.sleep(_IDLE)
        sizes[name] = [proportional_set_size(p) for p in shim_processes(node, name)]
        rates[name] = call_rate(kubelet.pods[-1])
        rows.append([name, len(sizes[name]), sum(sizes[name]) / pods / 1e6, max(sizes[name]) / 1e6, rates[name]])
        kubelet.close()
    node.write_launcher(forked=True)
    assert node.snapshotter is not None
    rows.append(["snapshotter (one a node)", 1, proportional_set_size(Path(f"/proc/{node.snapshotter.pid}")) / 1e6, "", ""])
    print_table([f"idle, {pods} pods", "processes", "MB PSS per pod", "largest MB", "ttrpc calls/s"], rows)
    print_ceiling("shim PSS per pod, the fork server's own memory included", sum(sizes[OURS]) / sum(sizes[RUNC]), 1)
    print_ceiling("with a plain start", sum(sizes[PLAIN]) / sum(sizes[RUNC]), 1)
    ksm = Path("/sys/kernel/mm/ksm/run")
    print(f"KSM runs: {'yes' if ksm.exists() and ksm.read_text().strip() == '1' else 'no'}")
    print(f"ttrpc State calls per second: {rates[OURS] / rates[RUNC]:.2f}x of the Go server's")


def call_rate(pod: Pod, *, seconds: float = 2.0) -> float:
    """State calls per second over one connection."""
    bundle = pod.kubelet.node.state / f"io.containerd.runtime.v2.task/{daemon.NAMESPACE}/{pod.id}"
    path = (bundle / "address").read_text().removeprefix("unix://")
    request = codec.encode(task.ProcessRequest(pod.id))
    done, until = 0, time.monotonic() + seconds
    with ttrpc.Client(path, deadline=10) as client:
        while time.monotonic() < until:
            client.call(task.SERVICES[0], "State", request)
            done += 1
    return done / seconds
