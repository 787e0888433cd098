"""Files of keys: whole, private, and nothing left beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault
from enclave_cc.owner.kbs import audit_keys, directory, token_keys
from enclave_cc.owner.replacement import replace_file
from enclave_cc.owner.resources.store_keys import KeyFile


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    for data in (b"one", b"two"):
        replace_file(path, data, mode=0o600)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["a.key"]


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault):
        replace_file(tmp_path / "absent" / "a.key", b"x", mode=0o600)
    (tmp_path / "a.key").mkdir()
    with pytest.raises(EnvironmentFault):
        replace_file(tmp_path / "a.key", b"x", mode=0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["a.key"]


def test_keys_that_a_killed_command_left_go_with_the_next(tmp_path: Path) -> None:
    """A private key that nobody knows of would stay in every copy of the directory."""
    for name in (".token.key.1.new", ".token.crt.1.new", ".audit.key.1.new", ".audit.pub.1.new", ".store.key.1.new"):
        (tmp_path / name).write_bytes(b"CANARY")
    token_keys.rotate(tmp_path, now=1_800_000_000)
    audit_keys.create(tmp_path)
    (tmp_path / "store.key").write_text("A" * 43 + "=\n")
    KeyFile(tmp_path / "store.key").begin_change()
    assert len(KeyFile(tmp_path / "store.key").read()) == 2
    assert [each for each in tmp_path.rglob("*") if each.name.endswith(".new")] == []
    assert {each.name for each in tmp_path.iterdir() if each.stat().st_mode & 0o077 and each.is_file()} <= {
        "token.crt",
        "audit.pub",
        "store.key",  # written by this test
    }


def test_what_a_killed_init_left_goes_with_the_next(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    for writer in (gone.stdout.strip(), "1"):  # one that has ended, and one that is at it
        left = tmp_path / f".kbs.{writer}.new"
        left.mkdir()
        (left / "admin.key").write_bytes(b"CANARY")
    directory.create(tmp_path / "kbs", listen="127.0.0.1:0", hostnames=())
    assert sorted(each.name for each in tmp_path.iterdir()) == [".kbs.1.new", "kbs"]
