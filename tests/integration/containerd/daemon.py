"""A containerd of a test's own, with our snapshotter beside it, in a scratch directory. Not a test; a part that tests share.

    with daemon.running(directory, registry_host) as node:      # directory: short, for unix sockets lie below it
        node.ctr("images", "pull", ...)
        node.address                                            # containerd's socket: CRI and ctr

Nothing of it is shared with a containerd of the machine but CNI's plugins and the directory /run/containerd/s, where
shims put their sockets (their names are hashes that hold the address).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from enclave_cc.host.install import toml_text
from enclave_cc.host.shim import launcher

BIN = Path(sys.executable).parent
SNAPSHOTTER = "enclave-cc"
NAMESPACE = "k8s.io"  # CRI's

# Plug-ins that would touch the machine (/opt) or complain about its file systems.
_DISABLED = ("snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.zfs", "internal.v1.opt")
_DISABLED += ("tracing.processor.v1.otlp", "internal.v1.tracing", "snapshotter.v1.native", "snapshotter.v1.erofs")


@cache
def read_version(binary: str) -> tuple[int, int]:
    """Major and minor, as the program prints it."""
    printed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d+", printed)
    assert found, printed
    return int(found[1]), int(found[2])


@dataclass
class Node:
    """`configuration`: the engine's config.toml, which shim and snapshotter read; `prepared`: whether containerd knows
    enclave-cc, and its snapshotter runs; `schema`: the version of containerd's configuration file (0: the newest it has);
    `registries`: where containerd finds registries that are not on the loopback, by HOST:PORT; `plugins`: further CNI
    plug-ins behind the first; `fork_server`: whether shims are its forks, else each is started by itself.
    """

    directory: Path
    registry_host: str
    configuration: Path | None = None
    pause: str = ""
    prepared: bool = True
    schema: int = 0
    registries: dict[str, str] = field(default_factory=dict)
    plugins: tuple[dict[str, object], ...] = ()
    fork_server: bool = True
    containerd_binary: str = os.environ.get("ENCLAVE_CC_CONTAINERD", "containerd")  # another version, with its shims beside it
    environment: dict[str, str] = field(default_factory=dict)
    containerd: subprocess.Popen[bytes] | None = None
    snapshotter: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.schema = self.schema or (2 if self.version < (2, 0) else 3)

    @property
    def address(self) -> Path:
        return self.directory / "c.sock"

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def shim(self) -> Path:
        return self.directory / "bin" / launcher.NAME

    @property
    def content(self) -> Path:
        return self.root / "io.containerd.content.v1.content"

    @property
    def snapshots(self) -> Path:
        return self.directory / "sn"

    @property
    def snapshotter_socket(self) -> Path:
        return self.directory / "sn.sock"

    @property
    def log(self) -> Path:
        return self.directory / "containerd.log"

    @property
    def snapshotter_log(self) -> Path:
        return self.directory / "snapshotter.log"

    @property
    def config_file(self) -> Path:
        return self.directory / "config.toml"

    @property
    def version(self) -> tuple[int, int]:
        """containerd's, major and minor."""
        return read_version(self.containerd_binary)

    # --- life

    def start(self) -> None:
        self.lay_out()
        self.shim.parent.mkdir(exist_ok=True)
        self.write_launcher(forked=self.fork_server)
        if self.prepared:
            self.start_snapshotter()
        self.start_containerd()

    def lay_out(self) -> None:
        """Directory, images and configuration of a node whose daemons do not run yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        beside = f"{Path(self.containerd_binary).parent}:" if "/" in self.containerd_binary else ""
        self.environment = {**os.environ, "PATH": f"{self.shim.parent}:{BIN}:{beside}{os.environ['PATH']}"}
        if self.configuration is not None:
            self.environment["ENCLAVE_CC_CONFIG"] = str(self.configuration)
        self.pause = self.pause or push_pause(self.directory, self.registry_host)
        self._write_network()
        for name, url in self.registries.items():
            hosts = self.directory / "certs.d" / name / "hosts.toml"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n')
        self.config_file.write_text(self.make_config())

    def write_launcher(self, *, forked: bool) -> None:
        """The shim's program as `node setup` installs it; if not `forked`, it is of an installation that has no fork server."""
        text = launcher.make_launcher()
        if not forked:
            line = "from enclave_cc.host.shim.__main__"
            other = f"from enclave_cc.host.shim import fork_server\n\nfork_server.LOADED = 'none'\n{line}"
            text = text.replace(line, other)
        self.shim.write_text(text)
        self.shim.chmod(0o755)

    def start_snapshotter(self) -> None:
        words = ["--root", str(self.snapshots), "--address", str(self.snapshotter_socket), "--content", str(self.content)]
        words += [] if self.fork_server else ["--no-fork-server"]
        with self.snapshotter_log.open("ab") as log:
            command = [sys.executable, "-m", "enclave_cc.host.snapshotter", *words]
            self.snapshotter = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self._wait(self.snapshotter, self.snapshotter_socket, self.snapshotter_log)

    def start_containerd(self) -> None:
        with self.log.open("ab") as log:
            command = [self.containerd_binary, "--config", str(self.config_file)]
            self.containerd = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self._wait(self.containerd, self.address, self.log)
        until = time.monotonic() + 15  # the socket is there before the plug-ins are
        while self.ctr("version", check=False).returncode:
            if time.monotonic() > until:
                raise RuntimeError(f"containerd does not answer:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], path: Path, log: Path, seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.poll() is None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                return
            time.sleep(0.02)
        raise RuntimeError(f"{path} does not listen:\n{log.read_text()[-3000:]}")

    def kill_containerd(self) -> None:
        """kill -9; `start_containerd` brings it back."""
        self._end(self.containerd, signal.SIGKILL)

    def kill_snapshotter(self) -> None:
        self._end(self.snapshotter, signal.SIGKILL)

    @staticmethod
    def _end(process: subprocess.Popen[bytes] | None, sig: int) -> None:
        if process is None or process.poll() is not None:
            return
        process.send_signal(sig)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Containers, containerd and snapshotter end; mounts and the directory go."""
        if self.containerd is not None and self.containerd.poll() is None:
            self.remove_everything()
        self._end(self.containerd, signal.SIGTERM)
        self._end(self.snapshotter, signal.SIGTERM)
        for mount in reversed(self.mounts()):  # CRI keeps sandboxes' /dev/shm and network namespaces in state and /run
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def remove_everything(self) -> None:
        for namespace in (NAMESPACE, "default"):
            with suppress(subprocess.TimeoutExpired):
                for task in self.ctr("tasks", "ls", "-q", namespace=namespace, check=False).stdout.split():
                    self.ctr("tasks", "rm", "-f", task, namespace=namespace, check=False)
                for container in self.ctr("containers", "ls", "-q", namespace=namespace, check=False).stdout.split():
                    self.ctr("containers", "rm", container, namespace=namespace, check=False)

    # --- use

    def ctr(
        self, *words: str, check: bool = True, timeout: float = 120, namespace: str = NAMESPACE
    ) -> subprocess.CompletedProcess[str]:
        command = ["ctr", "--address", str(self.address), "--namespace", namespace, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=self.environment)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def mounts(self) -> list[str]:
        here = f"{self.directory}/"
        points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [point for point in points if point.startswith(here)]

    def content_digests(self) -> set[str]:
        """The digests of every blob that containerd holds."""
        return {f"sha256:{path.name}" for path in (self.content / "blobs/sha256").glob("*")}

    # --- configuration

    def make_config(self) -> str:
        """The text of containerd's configuration file."""
        document: dict[str, Any] = {
            "version": self.schema,
            "root": str(self.root),
            "state": str(self.state),
            "disabled_plugins": [f"io.containerd.{name}" for name in _DISABLED],
            "grpc": {"address": str(self.address)},
        }
        if self.prepared:
            proxy = {"type": "snapshot", "address": str(self.snapshotter_socket)}
            exports = {"root": str(self.snapshots), "enable_remote_snapshot_annotations": "true"}
            document["proxy_plugins"] = {SNAPSHOTTER: {**proxy, "exports": exports}}
        nri = {"socket_path": str(self.directory / "nri.sock"), "plugin_path": str(self.directory / "nri")}
        document["plugins"] = {
            "io.containerd.nri.v1.nri": {"disable": self.version < (2, 0), **nri},  # as the version has it by default
            **self.make_cri_sections(),
        }
        if self.prepared and self.version >= (2, 0):
            unpack = [{"platform": "linux/amd64", "snapshotter": name} for name in ("overlayfs", SNAPSHOTTER)]
            document["plugins"]["io.containerd.transfer.v1.local"] = {"unpack_config": unpack}
        return toml_text.encode(document)

    def make_cri_sections(self) -> dict[str, Any]:
        """CRI's plug-in, which is three from schema 3 on."""
        streams = {"stream_server_address": "127.0.0.1", "stream_server_port": "0"}
        programs = {"bin_dirs": ["/usr/lib/cni"]} if self.schema > 2 and self.version > (2, 0) else {"bin_dir": "/usr/lib/cni"}
        cni = {**programs, "conf_dir": str(self.directory / "net.d")}
        runtimes: dict[str, Any] = {"runc": {"runtime_type": "io.containerd.runc.v2"}}
        images: dict[str, Any] = {}
        if self.prepared:
            words = ["enclave-cc.*"]
            runtimes["enclave-cc"] = {
                "runtime_type": "io.containerd.rune.v2",
                "pod_annotations": words,
                "container_annotations": words,
                "privileged_without_host_devices": True,
            }
            images = {"snapshotter": SNAPSHOTTER, "disable_snapshot_annotations": False}
        containerd = {"default_runtime_name": "runc", "runtimes": runtimes}
        runtime = {"restrict_oom_score_adj": True, "disable_apparmor": True, "cni": cni}
        registry = {"registry": {"config_path": str(self.directory / "certs.d")}}
        if self.schema < 3:
            section = {"sandbox_image": self.pause, **streams, **runtime, **registry, "containerd": {**images, **containerd}}
            return {"io.containerd.grpc.v1.cri": section}
        return {
            "io.containerd.grpc.v1.cri": streams,
            "io.containerd.cri.v1.runtime": {**runtime, "containerd": containerd},
            "io.containerd.cri.v1.images": {**images, **registry, "pinned_images": {"sandbox": self.pause}},
        }

    def _write_network(self) -> None:
        """Point to point with host-local addresses: needs no bridge, leaves no interface."""
        octet = int.from_bytes(os.urandom(1), "big")
        network = {
            "cniVersion": "0.4.0",
            "name": "test",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.directory / "ipam"),
                        "ranges": [[{"subnet": f"10.99.{octet}.0/24"}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                *self.plugins,
            ],
        }
        (self.directory / "net.d").mkdir(exist_ok=True)
        (self.directory / "net.d/10-test.conflist").write_text(json.dumps(network))


# --- images


def _umoci(*words: str) -> None:
    subprocess.run(["umoci", "--log", "error", *words], check=True, capture_output=True)


def push_image(directory: Path, registry_host: str, name: str, root: Path, *configuration: str) -> str:
    """An ordinary image whose one layer is the tree `root`, pushed; returns the reference."""
    layout = directory / "images"
    if not layout.exists():
        _umoci("init", "--layout", str(layout))
    _umoci("new", "--image", f"{layout}:{name}")
    _umoci("insert", "--image", f"{layout}:{name}", str(root), "/")
    if configuration:
        _umoci("config", "--image", f"{layout}:{name}", *configuration)
    reference = f"{registry_host}/{name}:latest"
    push_layout(f"{layout}:{name}", reference)
    return reference


def push_layout(source: str, reference: str) -> None:
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{source}", f"docker://{reference}"]
    subprocess.run(command, check=True, capture_output=True)


def push_pause(directory: Path, registry_host: str) -> str:
    """A pod's sandbox image: busybox that sleeps."""
    root = directory / "pause-root"
    (root / "bin").mkdir(parents=True)
    shutil.copy2("/bin/busybox", root / "bin/busybox")
    (root / "bin/sleep").symlink_to("busybox")
    words = [w for word in ("/bin/sleep", "2147483647") for w in ("--config.entrypoint", word)]
    reference = push_image(directory, registry_host, "pause", root, *words)
    shutil.rmtree(root)
    return reference


# --- what the registry was asked for

_REQUEST = re.compile(r'http\.request\.method=(?P<method>\S+) .*http\.request\.uri="(?P<uri>[^"]+)"')


def read_blob_requests(log: Path) -> list[tuple[str, str]]:
    """(user agent's first word, digest) of each blob read from docker-registry, whose log this is (level info)."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if "response completed" not in line:
            continue
        request = _REQUEST.search(line)
        blob = request and re.search(r"/v2/.+/blobs/(sha256:[0-9a-f]{64})$", request["uri"])
        if request and blob and request["method"] == "GET":
            agent = re.search(r'http\.request\.useragent=(?:"([^"]*)"|(\S+))', line)
            name = next((group for group in agent.groups() if group), "") if agent else ""
            found.append((name.split(" ")[0], blob[1]))
    return found


@contextmanager
def running(directory: Path, registry_host: str, **options: object) -> Iterator[Node]:
    """A started node for the length of a with block."""
    node = Node(directory, registry_host, **options)  # type: ignore[arg-type]
    try:
        node.start()
        yield node
    except BaseException:
        for log in (node.log, node.snapshotter_log):
            if log.exists():
                sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")
        raise
    finally:
        node.close()


def collect_events(node: Node) -> tuple[subprocess.Popen[str], list[str]]:
    """Starts `ctr events`; lines are appended to the list until the caller ends the process."""
    command = ["ctr", "--address", str(node.address), "events"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.append(line)

    threading.Thread(target=read, daemon=True).start()
    return process, lines
