"""`kbs migrate` and what needs it, on both databases, as commands."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.__main__ import main
from enclave_cc.owner.storage import migration


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()


def test_an_older_sqlite_file_is_migrated_only_when_told(tmp_path: Path) -> None:
    directory = tmp_path / "kbs"
    assert run("kbs", "init", "--dir", str(directory))[0] == 0
    assert run("kbs", "migrate", "--check", "--dir", str(directory))[0] == 0
    with sqlite3.connect(directory / "kbs.db") as raw:
        raw.execute("DROP TABLE migration")
    raw.close()
    for words in (("kbs", "serve"), ("kbs", "root", "ls"), ("kbs", "migrate", "--check")):
        code, _, error = run(*words, "--dir", str(directory))
        assert code == 3
        assert error.startswith("error wrong-state: ")
        assert "enclave-cc kbs migrate" in error


def test_a_kbs_on_postgresql_is_made_in_two_steps(tmp_path: Path, postgresql: Any) -> None:
    directory, name = tmp_path / "kbs", postgresql.create_database()
    code, out, _ = run("kbs", "init", "--dir", str(directory), "--database", postgresql.url(name))
    assert (code, "kbs migrate" in out) == (0, True)
    assert not (directory / "kbs.db").exists()
    assert run("kbs", "serve", "--dir", str(directory))[0] == 3
    code, out, _ = run("kbs", "migrate", "--json", "--dir", str(directory))
    assert (code, json.loads(out)) == (0, {"applied": migration.list_names()})
    assert run("kbs", "migrate", "--dir", str(directory))[:2] == (0, "the schema is this program's\n")
    assert run("kbs", "root", "ls", "--dir", str(directory))[0] == 0
    postgresql.drop_database(name)
    assert run("kbs", "migrate", "--dir", str(directory))[0] == 8


@pytest.mark.parametrize("url", ["postgresql://me:CANARY@h/kbs", "mysql://h/CANARY"])
def test_a_database_that_cannot_be_meant(tmp_path: Path, url: str) -> None:
    code, out, error = run("kbs", "init", "--dir", str(tmp_path / "kbs"), "--database", url)
    assert code == 2
    assert "CANARY" not in out + error
    assert not (tmp_path / "kbs").exists()


@pytest.mark.parametrize("setting", ["pool = 0", "statement_timeout = -1", 'url = "mongodb://x"', "nonsense = 1", 'pool = "many"'])
def test_settings_are_checked(tmp_path: Path, setting: str) -> None:
    directory = tmp_path / "kbs"
    run("kbs", "init", "--dir", str(directory))
    file = directory / "kbs.toml"
    name = setting.split(maxsplit=1)[0]
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{name} = ")]
    lines.insert(lines.index("[database]") + 1, setting)
    file.write_text("\n".join(lines))
    code, _, error = run("kbs", "migrate", "--dir", str(directory))
    assert (code, error.split(":")[0]) == (2, "error bad-config")
