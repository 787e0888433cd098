"""Users and groups with docker's rules."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclave_cc.enclave.boot import passwd
from enclave_cc.enclave.boot.passwd import Identity
from enclave_cc.errors import PeerError

PASSWD = """root:x:0:0:root:/root:/bin/sh
# a comment

bob:x:1000:1001:Bob:/home/bob:/bin/sh
1000:x:5:5::/digits:/bin/sh
bob2:x:1000:77::/second:/bin/sh
relative:x:7:7::home:/bin/sh
broken:x:abc:1::/x:/bin/sh
short:x:9
"""
GROUP = """root:x:0:
bob:x:1001:
audio:x:29:bob,root
wheel:x:10:bob
odd:x:xyz:bob
bare:x:11
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Identity(0, 0, (0, 29), "/root")),
        ("0", Identity(0, 0, (0, 29), "/root")),
        ("root", Identity(0, 0, (0, 29), "/root")),
        ("bob", Identity(1000, 1001, (1001, 29, 10), "/home/bob")),
        ("1000", Identity(1000, 1001, (1001, 29, 10), "/home/bob")),  # a number is an id, though an entry has it as name
        ("bob:", Identity(1000, 1001, (1001, 29, 10), "/home/bob")),
        ("bob:wheel", Identity(1000, 10, (10,), "/home/bob")),
        ("bob:12345", Identity(1000, 12345, (12345,), "/home/bob")),
        (":wheel", Identity(0, 10, (10,), "/root")),
        ("4242", Identity(4242, 0, (0,), "/")),
        ("4242:bare", Identity(4242, 11, (11,), "/")),
        ("relative", Identity(7, 7, (7,), "/")),
        ("2147483647", Identity(2147483647, 0, (0,), "/")),
    ],
)
def test_who_is_meant(user: str, expected: Identity) -> None:
    assert passwd.resolve(user, (), PASSWD, GROUP) == expected


@pytest.mark.parametrize("user", ["nobody", "broken", "short", "bob:none", "2147483648", "-1", "\u0661", "0:99999999999", "a:b:c"])
def test_who_is_not_there(user: str) -> None:
    with pytest.raises(PeerError) as caught:
        passwd.resolve(user, (), PASSWD, GROUP)
    assert caught.value.code == "launch-failed"


def test_more_groups() -> None:
    assert passwd.resolve("bob", ("wheel", "77", 29), PASSWD, GROUP).groups == (1001, 29, 10, 77)
    with pytest.raises(PeerError):
        passwd.resolve("bob", ("none",), PASSWD, GROUP)


def test_without_files() -> None:
    assert passwd.resolve("", (), "", "") == Identity(0, 0, (0,), "/")
    assert passwd.resolve("7:8", (), "", "") == Identity(7, 8, (8,), "/")


def test_files_are_read_as_they_may_be(tmp_path: Path) -> None:
    assert passwd.read_database(str(tmp_path / "none")) == ""
    (tmp_path / "odd").write_bytes(b"\xff:x:1:1::/:\n")
    assert passwd.resolve("1", (), passwd.read_database(str(tmp_path / "odd")), "").uid == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(passwd.FILE_LIMIT + 1)
    for name in ("pipe", "loop", "huge", "."):
        with pytest.raises(PeerError) as caught:
            passwd.read_database(str(tmp_path / name))
        assert caught.value.code == "launch-failed"
