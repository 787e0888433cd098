"""Changes to a machine come back byte for byte, or not at all when somebody changed the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.host.install import changes
from enclave_cc.host.install.changes import Change

ORIGINAL = b"version = 2\r\n# no newline at the end"


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "etc/config.toml"
    path.parent.mkdir()
    path.write_bytes(ORIGINAL)
    path.chmod(0o640)
    os.utime(path, ns=(1, 1_234_567_890))
    return path


def make(main: Path, tmp_path: Path) -> tuple[Path, list[Change]]:
    piece = 'imports = ["x"]\n'
    planned = [
        Change(main.parent / "conf.d", "directory"),
        Change(tmp_path / "link", "link", b"/target"),
        changes.replace_file(main.parent / "conf.d/ours", b"ours"),
        changes.replace_file(main, piece.encode() + ORIGINAL, piece=piece),
    ]
    return tmp_path / "state/record.json", planned


def listing(directory: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mtime = status.st_mtime_ns if path.is_file() and not path.is_symlink() else 0
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, mtime, content)
    return found


def test_undo_restores_everything(main: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    record, planned = make(main, tmp_path)
    changes.apply(record, planned, {})
    assert main.read_bytes().startswith(b"imports")
    assert main.stat().st_mode & 0o777 == 0o640
    assert len(changes.undo(record)) == 4
    assert listing(tmp_path) == before
    with pytest.raises(UsageError) as error:
        changes.undo(record)
    assert error.value.code == "not-found"


@pytest.mark.parametrize("made", range(5))
def test_undo_of_what_was_made_in_part(main: Path, tmp_path: Path, made: int) -> None:
    """A program that was killed after its record and `made` of its changes, while it wrote the next."""
    before = listing(tmp_path)
    record, planned = make(main, tmp_path)
    changes.apply(record, planned[:made], {})
    whole = tmp_path / "whole.json"
    changes.apply(whole, [], {})
    import json

    document = json.loads(record.read_text())
    document["changes"] = [changes._to_json(change) for change in planned]
    record.write_text(json.dumps(document))
    whole.unlink()
    for change in planned:
        if change.kind == "file" and change.path.parent.exists():
            change.path.with_name(f".{change.path.name}.enclave-cc").write_text("half")
    changes.undo(record)
    assert listing(tmp_path) == before


def test_other_peoples_changes_stay(main: Path, tmp_path: Path) -> None:
    record, planned = make(main, tmp_path)
    changes.apply(record, planned, {})
    main.write_bytes(main.read_bytes() + b"\n[debug]\nlevel = 'debug'\n")
    (main.parent / "conf.d/theirs").write_text("theirs")
    changes.undo(record)
    assert main.read_bytes() == ORIGINAL + b"\n[debug]\nlevel = 'debug'\n"
    assert (main.parent / "conf.d/theirs").read_text() == "theirs"
    assert not (main.parent / "conf.d/ours").exists()


@pytest.mark.parametrize("what", ["drop-in", "main", "link", "main gone"])
def test_nothing_is_touched_when_our_part_was_changed(main: Path, tmp_path: Path, what: str) -> None:
    record, planned = make(main, tmp_path)
    changes.apply(record, planned, {})
    if what == "drop-in":
        (main.parent / "conf.d/ours").write_bytes(b"edited")
    elif what == "main":
        main.write_bytes(main.read_bytes().replace(b'["x"]', b'["x", "y"]'))
    elif what == "link":
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("/elsewhere")
    else:
        main.unlink()
    before = listing(tmp_path)
    with pytest.raises(UsageError) as error:
        changes.undo(record)
    assert error.value.code == "wrong-state"
    assert listing(tmp_path) == before


def test_a_broken_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "record").write_text("{")
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        changes.undo(tmp_path / "record")
