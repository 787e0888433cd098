"""`enclave-cc node setup --containerd` on a real containerd: what it writes works, and goes without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import cri as clients
import daemon
import pytest
from kubelet import RUNC, Kubelet
from test_guest_pull import Requests, layers_of

import testbed as testbeds

pytestmark = pytest.mark.root

SECTION = "io.containerd.grpc.v1.cri"


class Machine(daemon.Node):
    """A containerd as it was before enclave-cc came, with its snapshotter where the engine's configuration puts it."""

    def make_config(self) -> str:
        lines = super().make_config().split("\n")
        ours = ("snapshotter =", "disable_snapshot", "pod_annotations", "container_annotations")
        text = "\n".join(line for line in lines if not line.strip().startswith(ours))
        text = text.split("[proxy_plugins", 1)[0] + "[plugins" + text.split("[plugins", 1)[1]
        head, tail = text.split(f'[plugins."{SECTION}".containerd.runtimes.enclave-cc]')
        return head + tail.split("\n", 2)[2]

    def set_up(self, *words: str) -> subprocess.CompletedProcess[str]:
        binaries = self.directory / "bin"
        command = [sys.executable, "-m", "enclave_cc", "node", "setup", "--containerd", str(self.config_file), *words]
        done = subprocess.run(
            [*command, "--links", str(binaries)], capture_output=True, text=True, check=False, env=self.environment
        )
        self.environment["PATH"] = f"{binaries}:{os.environ['PATH']}"
        return done

    def examine(self) -> tuple[str, str]:
        """doctor's verdict and words."""
        command = [sys.executable, "-m", "enclave_cc", "doctor", "--json"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment).stdout
        return next((row["verdict"], row["what"]) for row in json.loads(found) if row["check"] == "containerd")


@pytest.fixture
def machine(testbed: testbeds.Testbed, short_path: Path) -> Iterator[Machine]:
    engine = short_path / "engine.toml"
    engine.write_text(
        testbed.configuration.read_text()
        .replace(f'state = "{testbed.state}"', f'state = "{short_path}/state"')
        .replace(f'run = "{testbed.run_directory}"', f'run = "{short_path}/run"')
    )
    node = Machine(short_path / "c", testbed.registry_host, configuration=engine)
    node.directory.mkdir()
    node.environment = {**os.environ, "ENCLAVE_CC_CONFIG": str(engine)}
    node.pause = daemon.push_pause(node.directory, testbed.registry_host)
    node._write_network()
    node.config_file.write_text(node.make_config())
    yield node
    node.close()


def listing(directory: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


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

    log = (machine.directory / "snapshotter.log").open("ab")
    command = [sys.executable, "-m", "enclave_cc.host.snapshotter", "--content", str(machine.content)]
    machine.snapshotter = subprocess.Popen(command, stdout=log, stderr=log, env=machine.environment)
    log.close()
    machine._wait(machine.snapshotter, short_path / "run/snapshotter.sock", machine.snapshotter_log)
    machine.start_containerd()
    assert machine.examine() == ("ok", "containerd 1.6 knows enclave-cc")
    requests = Requests(testbed.directory / "registry.log")
    cri = clients.Cri(machine.address)
    cri.pull(busybox)
    assert not layers_of(busybox) & requests.digests()
    kubelet = Kubelet(machine, cri, tmp_path / "logs", RUNC, machine.pause)
    pod = kubelet.run_pod()
    container = pod.start("/bin/busybox", "echo", "hello")
    assert pod.wait(container).exit_code == 0
    assert pod.output(container) == "hello\n"
    assert layers_of(machine.pause) <= requests.digests()
    runtimes = json.loads(
        cri._call("/runtime.v1.RuntimeService/Status", clients.StatusRequest(True), clients.StatusResponse).info["config"]
    )
    assert {"runc", "enclave-cc"} <= set(runtimes["containerd"]["runtimes"])
    kubelet.close()
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


def test_a_configuration_that_containerd_refuses_is_left_alone(machine: Machine, short_path: Path) -> None:
    machine.config_file.write_text(machine.make_config() + '\n[grpc2]\nx = "unterminated\n')
    before = listing(short_path)
    done = machine.set_up()
    assert done.returncode == 2
    assert done.stderr.startswith("error bad-config")
    assert listing(short_path) == before


def test_an_import_that_overrides_us_is_noticed(machine: Machine, short_path: Path) -> None:
    """The glob reaches our file, and after it one that replaces CRI's section."""
    drop_ins = machine.directory / "conf.d"
    drop_ins.mkdir()
    (drop_ins / "zz.toml").write_text(f'version = 2\n[plugins."{SECTION}".cni]\nbin_dir = "/opt/cni/bin"\n')
    machine.config_file.write_text(f'imports = ["{drop_ins}/*.toml"]\n' + machine.make_config())
    before = listing(short_path)
    done = machine.set_up()
    assert done.returncode == 4
    assert "would not take" in done.stderr
    assert listing(short_path) == before


def test_a_drop_in_directory_that_is_imported_already(machine: Machine) -> None:
    drop_ins = machine.directory / "conf.d"
    drop_ins.mkdir()
    (drop_ins / "a.toml").write_text(f'version = 2\n[plugins."{SECTION}".cni]\nbin_dir = "/opt/cni/bin"\n')
    text = f'imports = ["{drop_ins}/*.toml"]\n' + machine.make_config()
    machine.config_file.write_text(text)
    assert machine.set_up().returncode == 0
    assert machine.config_file.read_text() == text
    section = tomllib.loads((drop_ins / "enclave-cc.toml").read_text())["plugins"][SECTION]
    assert section["cni"] == {"bin_dir": "/opt/cni/bin"}
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
    assert "version" not in written
    assert written["plugins"]["cri"]["cni"] == {"bin_dir": "/usr/lib/cni"}
    assert machine.set_up("--undo").returncode == 0
    assert machine.config_file.read_bytes() == before


def test_doctor_tells_what_changed(machine: Machine) -> None:
    assert machine.examine()[0] == "note"
    assert machine.set_up().returncode == 0
    assert machine.examine() == ("missing", "the snapshotter does not run")
    text = machine.config_file.read_text()
    machine.config_file.write_text(text.replace("restrict_oom_score_adj = true", "restrict_oom_score_adj = false"))
    assert "the drop-in hides it" in machine.examine()[1]
    assert machine.set_up().returncode == 0
    drop_in = machine.directory / "conf.d/enclave-cc.toml"
    assert tomllib.loads(drop_in.read_text())["plugins"][SECTION]["restrict_oom_score_adj"] is False
    assert machine.examine() == ("missing", "the snapshotter does not run")
    drop_in.write_text("")
    assert "changed since" in machine.examine()[1]


def test_usage(machine: Machine) -> None:
    done = machine.set_up("--per-runtime")
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "error usage")
    done = machine.set_up("--undo")
    assert (done.returncode, done.stderr.split(":")[0]) == (3, "error not-found")
