"""`enclave-cc node setup --containerd` on a real containerd: what it writes works, and goes without a trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import cri as clients
import daemon
import pytest
from kubelet import OURS, PARENT, RUNC, Kubelet
from test_guest_pull import Requests, layers_of

import testbed as testbeds

pytestmark = pytest.mark.root

RUNTIME = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}  # by the version of the configuration file


class Machine(daemon.Node):
    """A containerd as it was before enclave-cc came, with its snapshotter where the engine's configuration puts it."""

    @property
    def section(self) -> str:
        return RUNTIME[self.schema]

    def start_installed_snapshotter(self, socket: Path) -> None:
        command = [sys.executable, "-m", "enclave_cc.host.snapshotter", "--content", str(self.content)]
        with self.snapshotter_log.open("ab") as log:
            self.snapshotter = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self._wait(self.snapshotter, socket, self.snapshotter_log)

    def set_up(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "enclave_cc", "node", "setup", "--containerd", str(self.config_file), *words]
        command += ["--links", str(self.shim.parent), "--binary", self.containerd_binary]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)

    def examine(self) -> tuple[str, str]:
        """doctor's verdict and words."""
        command = [sys.executable, "-m", "enclave_cc", "doctor", "--json"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment).stdout
        return next((row["verdict"], row["what"]) for row in json.loads(found) if row["check"] == "containerd")


@pytest.fixture(params=[2, 3])
def machine(testbed: testbeds.Testbed, short_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """With a configuration file of each version that this containerd reads."""
    engine = short_path / "engine.toml"
    engine.write_text(
        testbed.configuration.read_text()
        .replace(f'state = "{testbed.state}"', f'state = "{short_path}/state"')
        .replace(f'run = "{testbed.run_directory}"', f'run = "{short_path}/run"')
        + '[network]\nagent = "host"\n'
    )
    node = Machine(short_path / "c", testbed.registry_host, configuration=engine, prepared=False, schema=request.param)
    if node.schema > 2 and node.version < (2, 0):
        pytest.skip("containerd 2 brought version 3 of the configuration file")
    node.lay_out()
    shutil.copytree(testbed.state / "simulator", short_path / "state/simulator")  # whose root the KBS knows
    yield node
    node.close()


def listing(directory: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def expect_pod(machine: Machine, cri: clients.Cri, place: Path, handler: str, image: str) -> None:
    """A pod of that handler says hello and goes."""
    kubelet = Kubelet(machine, cri, place / f"logs-{handler}", handler, image)
    try:
        pod = kubelet.run_pod()
        container = pod.start("/bin/busybox", "echo", "hello")
        assert pod.wait(container).exit_code == 0
        assert pod.output(container) == "hello\n"
        pod.end()
    finally:
        kubelet.close()


def test_what_it_writes_runs_both_kinds_and_goes_without_a_trace(
    machine: Machine, testbed: testbeds.Testbed, busybox: str, tmp_path: Path, short_path: Path
) -> None:
    before = listing(short_path)
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert "handler: enclave-cc" in done.stdout
    assert "nothing was restarted" in done.stderr
    link = machine.directory / "bin/containerd-shim-rune-v2"
    assert link.resolve().name == "containerd-shim-rune-v2"
    again = machine.set_up("--json")
    assert str(machine.config_file) in json.loads(again.stdout)["paths"]

    machine.start_installed_snapshotter(short_path / "run/snapshotter.sock")
    machine.start_containerd()
    assert machine.examine() == ("ok", f"containerd {machine.version[0]}.{machine.version[1]} knows enclave-cc")
    requests = Requests(testbed.directory / "registry.log")
    cri = clients.Cri(machine.address)
    cri.pull(busybox)
    assert not layers_of(busybox) & requests.digests()
    for handler, image in ((RUNC, machine.pause), (OURS, busybox)):
        expect_pod(machine, cri, tmp_path, handler, image)
    assert layers_of(machine.pause) <= requests.digests()
    runtimes = json.loads(
        cri._call("/runtime.v1.RuntimeService/Status", clients.StatusRequest(True), clients.StatusResponse).info["config"]
    )
    assert {"runc", "enclave-cc"} <= set(runtimes["containerd"]["runtimes"])
    cri.close()
    machine.remove_everything()
    machine.kill_containerd()
    machine.kill_snapshotter()

    undone = machine.set_up("--undo")
    assert undone.returncode == 0, undone.stderr
    after = listing(short_path)
    changed = {path for path in before if before[path] != after.get(path)}
    assert changed == set()
    for path in (machine.directory / "bin", machine.directory / "conf.d", short_path / "state/install"):
        assert not path.exists()


def snapshots_of(machine: Machine, snapshotter: str) -> int:
    return len(machine.ctr("snapshots", "--snapshotter", snapshotter, "ls").stdout.splitlines()) - 1


def test_one_snapshotter_per_runtime(
    machine: Machine, testbed: testbeds.Testbed, busybox: str, tmp_path: Path, short_path: Path
) -> None:
    """Ours serves pods of our handler alone; their images are pulled for it by the pod's annotation."""
    if machine.version < (1, 7):
        pytest.skip("containerd 1.6 has one snapshotter for the node")
    done = machine.set_up("--per-runtime")
    assert done.returncode == 0, done.stderr
    machine.start_installed_snapshotter(short_path / "run/snapshotter.sock")
    machine.start_containerd()
    cri = clients.Cri(machine.address)
    cri.pull(machine.pause)
    assert snapshots_of(machine, daemon.SNAPSHOTTER) == 0
    assert snapshots_of(machine, "overlayfs") == 1
    requests = Requests(testbed.directory / "registry.log")
    cri.pull(busybox, clients.pod(parent=PARENT, annotations={"io.containerd.cri.runtime-handler": OURS}), OURS)
    assert not layers_of(busybox) & requests.digests()
    assert snapshots_of(machine, daemon.SNAPSHOTTER) == len(layers_of(busybox))
    assert snapshots_of(machine, "overlayfs") == 1
    for handler, image in ((RUNC, machine.pause), (OURS, busybox)):
        expect_pod(machine, cri, tmp_path, handler, image)
    cri.close()


def test_a_configuration_that_containerd_refuses_is_left_alone(machine: Machine, short_path: Path) -> None:
    machine.config_file.write_text(machine.make_config() + '\n[grpc2]\nx = "unterminated\n')
    before = listing(short_path)
    done = machine.set_up()
    assert done.returncode == 2
    assert done.stderr.startswith("error bad-config")
    assert listing(short_path) == before


def test_an_import_that_overrides_us_is_noticed(machine: Machine, short_path: Path) -> None:
    """The glob reaches our file, and after it one that has a runtime handler of our name."""
    drop_ins = machine.directory / "conf.d"
    drop_ins.mkdir()
    table = f'[plugins."{machine.section}".containerd.runtimes.{OURS}]'
    (drop_ins / "zz.toml").write_text(f'version = {machine.schema}\n{table}\nruntime_type = "io.containerd.other.v1"\n')
    machine.config_file.write_text(f'imports = ["{drop_ins}/*.toml"]\n' + machine.make_config())
    before = listing(short_path)
    done = machine.set_up()
    assert done.returncode == 4
    assert "would not take" in done.stderr
    assert listing(short_path) == before


def test_a_drop_in_directory_that_is_imported_already(machine: Machine) -> None:
    drop_ins = machine.directory / "conf.d"
    drop_ins.mkdir()
    table = f'[plugins."{machine.section}".cni]'
    (drop_ins / "a.toml").write_text(f'version = {machine.schema}\n{table}\nbin_dir = "/opt/other/bin"\n')
    text = f'imports = ["{drop_ins}/*.toml"]\n' + machine.make_config()
    machine.config_file.write_text(text)
    assert machine.set_up().returncode == 0
    assert machine.config_file.read_text() == text
    command = [machine.containerd_binary, "--config", str(machine.config_file), "config", "dump"]
    dump = tomllib.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    section = dump["plugins"][RUNTIME[3] if machine.version >= (2, 0) else machine.section]  # 2.x shows all files as its own
    assert "/opt/other/bin" in (section["cni"]["bin_dir"], *section["cni"].get("bin_dirs", []))
    assert {RUNC, OURS} <= set(section["containerd"]["runtimes"])
    assert machine.set_up("--undo").returncode == 0
    assert [path.name for path in drop_ins.iterdir()] == ["a.toml"]


def test_old_configuration_files(machine: Machine) -> None:
    machine.config_file.write_text(
        f'root = "{machine.root}"\nstate = "{machine.state}"\n[plugins.cri.cni]\nbin_dir = "/usr/lib/cni"\n'
    )
    before = machine.config_file.read_bytes()
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    written = tomllib.loads((machine.directory / "conf.d/enclave-cc.toml").read_text())
    if machine.version < (2, 0):
        assert "version" not in written
        assert written["plugins"]["cri"]["cni"] == {"bin_dir": "/usr/lib/cni"}
    else:  # which reads such a file as one of its own, and passes over [plugins.cri]
        assert written["version"] == 3
        assert "cri" not in written["plugins"]
    assert machine.set_up("--undo").returncode == 0
    assert machine.config_file.read_bytes() == before


def test_doctor_tells_what_changed(machine: Machine) -> None:
    assert machine.examine()[0] == "note"
    assert machine.set_up().returncode == 0
    assert machine.examine() == ("missing", "the snapshotter does not run")
    text = machine.config_file.read_text()
    if machine.version < (2, 0):
        machine.config_file.write_text(text.replace("restrict_oom_score_adj = true", "restrict_oom_score_adj = false"))
    else:
        table = '[[plugins."io.containerd.transfer.v1.local".unpack_config]]'
        machine.config_file.write_text(f'{text}\n{table}\nplatform = "linux/amd64"\nsnapshotter = "native"\n')
    assert "the drop-in hides it" in machine.examine()[1]
    assert machine.set_up().returncode == 0
    drop_in = machine.directory / "conf.d/enclave-cc.toml"
    repeated = tomllib.loads(drop_in.read_text())["plugins"]
    if machine.version < (2, 0):
        assert repeated[machine.section]["restrict_oom_score_adj"] is False
    else:
        unpacked = repeated["io.containerd.transfer.v1.local"]["unpack_config"]
        assert [item["snapshotter"] for item in unpacked] == ["native", daemon.SNAPSHOTTER]
    assert machine.examine() == ("missing", "the snapshotter does not run")
    drop_in.write_text("")
    assert "changed since" in machine.examine()[1]


def test_usage(machine: Machine) -> None:
    if machine.version < (1, 7):
        done = machine.set_up("--per-runtime")
        assert (done.returncode, done.stderr.split(":")[0]) == (2, "error usage")
    done = machine.set_up("--undo")
    assert (done.returncode, done.stderr.split(":")[0]) == (3, "error not-found")
