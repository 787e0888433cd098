from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enclave_cc import __main__ as command_line
from enclave_cc import errors

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", command_line.COMMANDS, ids=lambda c: c.words)
def test_every_command_has_help(command: command_line.Command, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(command.module)
    with pytest.raises(SystemExit) as caught:
        command_line.main([*command.words.split(), "--help"])
    assert caught.value.code == 0
    assert command.words in capsys.readouterr().out


def test_the_longest_words_win_and_kbs_forwards_its_groups() -> None:
    assert command_line.find_command(["image", "ls", "-x"]) is not None
    found = command_line.find_command(["kbs", "resource", "ls"])
    assert found is not None and found[0].words == "resource" and found[1] == ["ls"]
    assert command_line.find_command(["nothing"]) is None


def test_an_unknown_command_exits_with_usage() -> None:
    done = subprocess.run([sys.executable, "-m", "enclave_cc", "imagine"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error usage" in done.stderr


def test_errors_are_objects_in_json_mode() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "enclave_cc", "verify", "quote", "/nonexistent", "--collateral", "/nonexistent", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stderr)["error"]["code"] == "usage"


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "enclave_cc", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize("words", [["run"], ["run", "--nothing", "x"], ["policy", "set"], ["ps", "--json", "x"]])
def test_wrong_arguments_are_said_as_all_errors_are(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    if "--json" in words:
        assert json.loads(last)["error"]["code"] == "usage"
    else:
        assert last.startswith("error usage: ") and f"See `enclave-cc {words[0]}" in last
    assert "CMD" not in last


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams_are_no_error(closed: int, short_path: Path) -> None:
    (short_path / "c.toml").write_text(f'[paths]\nrun = "{short_path}/run"\n')
    for words in (["ps", "--config", str(short_path / "c.toml")], ["--help"]):
        command = [sys.executable, "-m", "enclave_cc", *words]
        done = subprocess.run(["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command], check=False, timeout=60)
        assert done.returncode == 0


def test_a_full_standard_output_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = run("--help", stdout=full)
    assert done.returncode == errors.TABLE["disk-full"].exit
    assert done.stderr.startswith("error disk-full: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_is_gone_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = run("--help", stdout=gone)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_the_system_refuses_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("enclave_cc.host.sandbox.directories.list_pods", refuse)
    (tmp_path / "c.toml").touch()
    assert command_line.main(["ps", "--config", str(tmp_path / "c.toml")]) == errors.TABLE["environment"].exit
    assert capsys.readouterr().err == f"error environment: {tmp_path}: Permission denied. Run it as root, or as its owner.\n"


def test_each_side_gets_its_own_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.PeerError("registry-denied", "no")

    monkeypatch.setattr("enclave_cc.owner.publish.sources.open_source", refuse)
    assert command_line.main(["image", "inspect", "x"]) == errors.TABLE["registry-denied"].exit
    assert "--auth-file" in capsys.readouterr().err
    assert "--auth-file" not in errors.TABLE["registry-denied"].fix
    assert errors.OWNER_FIXES.keys() <= errors.TABLE.keys()
