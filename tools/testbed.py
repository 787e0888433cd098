"""A whole site on one machine: registry, KBS, simulated platform, bundles and a node configuration.

Demo, end-to-end tests and benchmarks stand on it. It drives `enclave-cc` as a user would, by its command line; the
registry is Debian's docker-registry. Everything lies in one directory and every process ends with the testbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
ENCLAVE_CC = Path(sys.executable).parent / "enclave-cc"


@dataclass
class Testbed:
    """`directory` must be short (unix sockets lie below it) and empty; `host`: where registry and KBS listen."""

    __test__ = False

    directory: Path
    host: str = "127.0.0.1"
    registry_host: str = ""
    kbs_url: str = ""
    registry: subprocess.Popen[bytes] | None = None
    kbs: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    groups_before: set[str] = field(default_factory=lambda: {p.name for p in pod_groups()})

    @property
    def kbs_directory(self) -> Path:
        return self.directory / "kbs"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def run_directory(self) -> Path:
        return self.directory / "run"

    @property
    def registry_directory(self) -> Path:
        return self.directory / "registry"

    @property
    def configuration(self) -> Path:
        return self.directory / "config.toml"

    @property
    def kbs_log(self) -> Path:
        return self.directory / "kbs.log"

    # --- making it

    def start(self) -> None:
        """Bundles, simulated platform, registry and KBS, and what the owner tells the KBS to trust."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            "ENCLAVE_CC_CONFIG": str(self.configuration),
            "ENCLAVE_CC_KBS": str(self.kbs_directory),
            # As when installed: no command compiles its modules anew, whatever this process was told to do about its own.
            "PYTHONPYCACHEPREFIX": str(ROOT / "build/bytecode"),
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.start_registry()
        bundles = build_bundles()
        self.cli("kbs", "init", "--dir", str(self.kbs_directory), "--listen", f"{self.host}:{free_port()}")
        self.start_kbs()
        simulator = self.state / "simulator"
        self.cli("simulator", "init", "--state", str(simulator))
        self.write_configuration(bundles)
        root, collateral = self.directory / "simulated-root.pem", self.directory / "simulated-collateral.json"
        root.write_text(self.cli("simulator", "root", "--state", str(simulator)).stdout)
        collateral.write_text(self.cli("simulator", "collateral", "--state", str(simulator)).stdout)
        self.cli("kbs", "root", "add", "this-machine", "--certificate", str(root), "--collateral", str(collateral), "--simulated")
        self.cli("refvals", "add", str(bundles / "agent/reference.json"))

    def write_configuration(self, bundles: Path, *, extra: str = "") -> None:
        self.configuration.write_text(
            f"""[paths]
state = "{self.state}"
run = "{self.run_directory}"

[bundles]
agent = "{bundles / "agent"}"
app = "{bundles / "app"}"

[platform]
tee = "simulated"

[kbs]
url = "{self.kbs_url}"
certificate = "{self.kbs_directory / "kbs.crt"}"

[registry]
insecure = ["{self.registry_host}"]

{extra}"""
        )

    def start_registry(self, port: int | None = None) -> None:
        port = port or free_port()
        self.registry_directory.mkdir(exist_ok=True)
        configuration = self.directory / "registry.yml"
        configuration.write_text(
            f"version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {self.registry_directory}}}\n"
            f"  delete: {{enabled: true}}\nhttp: {{addr: '{self.host}:{port}'}}\n"
        )
        log = (self.directory / "registry.log").open("ab")
        self.registry = subprocess.Popen(["docker-registry", "serve", str(configuration)], stdout=log, stderr=log)
        log.close()
        wait_for_port(port, host=self.host)
        self.registry_host = f"{self.host}:{port}"

    def start_kbs(self) -> None:
        log = self.kbs_log.open("ab")
        self.kbs = subprocess.Popen(
            [ENCLAVE_CC, "kbs", "serve", "--dir", str(self.kbs_directory)], stdout=subprocess.PIPE, stderr=log, env=self.environment
        )
        log.close()
        assert self.kbs.stdout is not None
        line = read_line(self.kbs.stdout, seconds=30)
        found = re.match(r"kbs ready (https://\S+)", line)
        if not found:
            raise RuntimeError(f"the KBS did not start: {line!r}\n{self.kbs_log.read_text()[-2000:]}")
        self.kbs_url = found[1]

    def close(self) -> None:
        """Pods, KBS and registry end; the directory is removed."""
        if self.configuration.exists():
            for pod in self.pods():
                self.cli("rm", "-f", str(pod["id"]), check=False)
        for process in (self.kbs, self.registry):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process is not None and process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- using it

    def cli(
        self, *words: str, check: bool = True, timeout: float = 300, text_in: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`enclave-cc WORDS` with this testbed's configuration; with `check`, raises with its output when it fails."""
        done = subprocess.run(
            [ENCLAVE_CC, *words], capture_output=True, text=True, env=self.environment, timeout=timeout, check=False, input=text_in
        )
        if check and done.returncode:
            raise RuntimeError(f"enclave-cc {' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        """`enclave-cc WORDS` in a session of its own, with pipes; the caller waits for it."""
        pipe = subprocess.PIPE
        return subprocess.Popen([ENCLAVE_CC, *words], stdout=pipe, stderr=pipe, env=self.environment, start_new_session=True)

    def reference(self, name: str) -> str:
        return f"{self.registry_host}/{name}"

    def publish(self, layout: Path | str, name: str, *arguments: str) -> str:
        """Encrypts, signs and pushes; returns the reference."""
        self.cli("image", "publish", str(layout), self.reference(name), "--insecure", *arguments)
        return self.reference(name)

    def pods(self) -> list[dict[str, object]]:
        found = self.cli("ps", "-a", "--json", check=False)
        return json.loads(found.stdout) if found.returncode == 0 and found.stdout.strip() else []

    def find_plaintext(self, canary: bytes, *directories: Path) -> list[Path]:
        """Files below `directories` (default: everything of the site that lies on disk) that hold `canary`."""
        found = []
        for directory in directories or (self.state, self.run_directory, self.registry_directory, self.kbs_directory):
            for path in walk_files(directory):
                if holds(path, canary):
                    found.append(path)
        return found

    def leftovers(self) -> dict[str, list[str]]:
        """What a node must not keep when no pod is there: mounts, processes, cgroups, run directories, loops, netns."""
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        here = str(self.directory)
        loops = []
        for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
            if here in loop.read_text():
                loops.append(str(loop))
        return {
            "mounts": [m for m in mounts if m.startswith((str(self.run_directory), str(self.state)))],
            "processes": list(enclave_processes(here)),
            "cgroups": enclave_cgroups(here, self.groups_before),
            "pods": [str(p) for p in (self.run_directory / "pods").glob("*")],
            "loops": loops,
            "leases": [str(p) for p in (self.state / "cache/leases").glob("*")],
        }


def enclave_processes(here: str) -> Iterator[str]:
    """Processes of the site at `here`: those that name it in their command line, or whose container mounts from it."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            contained = "/enclave-cc/" in (directory / "cgroup").read_text()
            mounted = contained and here in (directory / "mountinfo").read_text()
        except OSError:
            continue
        ours = here in line and ("runc" in line or "enclave_cc" in line)
        if (mounted or ours) and int(directory.name) != os.getpid() and "kbs serve" not in line:
            yield f"{directory.name}: {line.strip()[:120]}"


def pod_groups() -> list[Path]:
    # os.walk: a group that goes away meanwhile, of another site's pod, is no error
    return [Path(root, name) for root, names, _ in os.walk("/sys/fs/cgroup") if root.endswith("/enclave-cc") for name in names]


def enclave_cgroups(here: str, before: set[str], *, seconds: float = 3) -> list[str]:
    """Pods' control groups, but those in `before`, that belong to the site at `here`, or to nobody for `seconds`."""
    ours = {line.split(":")[0] for line in enclave_processes(here)}
    groups = {str(p): p for p in pod_groups() if p.name not in before}
    found = [name for name, path in groups.items() if processes_below(path) & ours]
    empty = {name for name, path in groups.items() if not processes_below(path)}
    until = time.monotonic() + seconds
    while empty and time.monotonic() < until:
        time.sleep(0.1)
        empty = {name for name in empty if groups[name].exists() and not processes_below(groups[name])}
    return sorted([*found, *empty])


def processes_below(group: Path) -> set[str]:
    found: set[str] = set()
    for file in group.rglob("cgroup.procs"):
        with suppress(OSError):
            found |= set(file.read_text().split())
    return found


def walk_files(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        directories[:] = [d for d in directories if not os.path.ismount(f"{root}/{d}")]
        for name in files:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                yield path


def holds(path: Path, needle: bytes) -> bool:
    tail = b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                if needle in tail + chunk:
                    return True
                tail = chunk[-len(needle) :]
    except OSError:
        pass
    return False


def source_digest() -> str:
    """What decides a bundle: our source, the enclaves' locks, and the interpreter's version."""
    digest = hashlib.sha256(Path("/usr/bin/python3.11").resolve().read_bytes())
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "payload/measured").rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_bundles() -> Path:
    """Agent and app bundles of the present source, built once per state of it; returns their directory."""
    directory = ROOT / "build/bundles" / source_digest()
    if not (directory / "agent/reference.json").exists():
        builds = sorted((ROOT / "build/bundles").glob("*"), key=lambda p: p.stat().st_mtime)
        for stale in builds[:-8]:  # the newest may be in use by another run
            shutil.rmtree(stale, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        key = ROOT / "build/bundle-signing.pem"
        for words in (["app"], ["agent", "--app", str(directory / "app")]):
            command = [ENCLAVE_CC, "bundle", "build", *words, "--out", str(directory / words[0]), "--key", str(key)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"bundle build failed:\n{done.stdout}{done.stderr}")
    return directory


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, seconds: float = 15, *, host: str = "127.0.0.1") -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def read_line(stream: IO[bytes], *, seconds: float) -> str:
    """One line, or what came until the deadline or the end."""
    import select

    until, got = time.monotonic() + seconds, b""
    while not got.endswith(b"\n") and time.monotonic() < until:
        if select.select([stream], [], [], max(0, until - time.monotonic()))[0]:
            byte = os.read(stream.fileno(), 1)
            if not byte:
                break
            got += byte
    return got.decode().strip()


# --- images


def make_image(layout: Path, tag: str, root: Path, *configuration: str) -> str:
    """An ordinary OCI image in `layout`:`tag` whose one layer is the tree `root`, made by umoci; returns the source."""
    umoci = ["umoci", "--log", "error"]
    if not layout.exists():
        subprocess.run([*umoci, "init", "--layout", str(layout)], check=True)
    subprocess.run([*umoci, "new", "--image", f"{layout}:{tag}"], check=True)
    subprocess.run([*umoci, "insert", "--image", f"{layout}:{tag}", str(root), "/"], check=True)
    if configuration:
        subprocess.run([*umoci, "config", "--image", f"{layout}:{tag}", *configuration], check=True)
    return f"{layout}:{tag}"


APPLETS = (
    "sh cat ls echo sleep env id pwd true false head wc dd kill sha256sum find test touch mkdir mount ps stat hostname "
    "tty stty printf grep nc ip wget seq rm cp"
)


def busybox_root(directory: Path) -> Path:
    """A root file system around Debian's static busybox."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy2("/bin/busybox", directory / "bin/busybox")
    for name in APPLETS.split():
        (directory / "bin" / name).symlink_to("busybox")
    for name in ("etc", "tmp", "proc", "sys", "dev", "root", "home/app"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\napp:x:1000:\naudio:x:29:app\n")
    os.chown(directory / "home/app", 1000, 1000)
    return directory


@contextmanager
def running(directory: Path, *, host: str = "127.0.0.1") -> Iterator[Testbed]:
    testbed = Testbed(directory, host)
    try:
        testbed.start()
        yield testbed
    finally:
        testbed.close()


def kill_group(process: subprocess.Popen[bytes], sig: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, sig)


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    """The code of the error that a command ended with."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error ")]
    return lines[-1].split()[1].rstrip(":") if lines else f"(no error; exit {done.returncode}: {done.stderr[-300:]})"
