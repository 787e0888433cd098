from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from enclave_cc import __main__ as command_line


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
