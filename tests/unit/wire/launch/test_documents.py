"""Policy, overrides, statement as JSON: round trips, and everything that is not exactly the format."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.errors import PeerError
from enclave_cc.wire.launch import members
from enclave_cc.wire.launch.limits import Rlimit
from enclave_cc.wire.launch.mounts import Tmpfs, Volume
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.launch.policy import LaunchPolicy, Permissions
from enclave_cc.wire.launch.statement import LaunchStatement

FULL = LaunchStatement(
    image="r/i:1",
    manifest_digest="sha256:" + "a1" * 32,
    container_id="c",
    args=("/bin/ä", ""),
    env=("A=1", "B="),
    cwd="/w",
    user="u:g",
    groups=("1",),
    hostname="h",
    volumes=(Volume("v", "/data", True), Volume("w", "/dev/shm")),
    tmpfs=(Tmpfs("/cache", 1 << 20, 0o700, False), Tmpfs("/tmp")),
    files=("hosts",),
    scratch=("/x",),
    stdin=True,
    terminal=True,
    capabilities=("CAP_KILL", "CAP_CHOWN"),
    ambient=("CAP_CHOWN",),
    no_new_privileges=True,
    seccomp="BgAAAAAA/38=",
    rlimits=(Rlimit("RLIMIT_NOFILE", 1, (1 << 64) - 1),),
    masked=("/proc/x",),
    sealed=("/sys/y",),
    read_only_root=True,
    upper_size=1 << 40,
    allow_exec=True,
    stop_signal=64,
)
WISHES = Overrides(
    args=("a",),
    entrypoint=(),
    env=("A=b",),
    cwd="/",
    user="0",
    groups=("g",),
    hostname="h.example",
    volumes=(Volume("v", "/d"),),
    tmpfs=(Tmpfs("/t"),),
    files=("resolv.conf",),
    stdin=True,
    terminal=True,
    read_only_root=True,
    no_new_privileges=True,
    capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"),
    ambient=("CAP_CHOWN",),
    rlimits=(Rlimit("RLIMIT_CORE", 0, 0),),
    masked=("/sys/kernel/debug",),
    sealed=("/proc/net",),
    seccomp="BgAAAAAA/38=",
    upper_size=5,
)
POLICY = LaunchPolicy(Permissions(frozenset({"env"})), {"r/i": Permissions(frozenset({"env:A", "volumes:/data", "exec"}))})


def test_round_trips() -> None:
    assert LaunchStatement.parse(FULL.encode()) == FULL
    assert LaunchStatement.from_json(FULL.to_json()) == FULL
    assert Overrides.parse(WISHES.encode()) == WISHES
    assert Overrides.parse(Overrides().encode()) == Overrides.parse(b"") == Overrides.parse(b'{"version":1}') == Overrides()
    assert LaunchPolicy.parse(POLICY.encode()) == POLICY
    assert LaunchPolicy.parse(b'{"version":1}') == LaunchPolicy()


def test_the_canonical_form() -> None:
    data = FULL.encode()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert "ä".encode() in data


@pytest.mark.parametrize("member", sorted(FULL.to_json()))
def test_each_member_of_a_statement_is_required_and_typed(member: str) -> None:
    document = FULL.to_json()
    for value in (None, 1.5, {"x": 1}, [[]], -1, "\0"):
        with pytest.raises(PeerError) as caught:
            LaunchStatement.from_json(document | {member: value})
        assert caught.value.code == "malformed"
    del document[member]
    with pytest.raises(PeerError):
        LaunchStatement.from_json(document)


@pytest.mark.parametrize("member", sorted(json.loads(WISHES.encode())))
def test_each_member_of_the_overrides_is_typed(member: str) -> None:
    for value in (1.5, {"x": 1}, [[]], -1, "\0"):
        with pytest.raises(PeerError) as caught:
            Overrides.parse(json.dumps(json.loads(WISHES.encode()) | {member: value}).encode())
        assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{",
        b'{"version":1,"version":1}',
        b'{"version":2}',
        b'{"version":true}',
        b'{"version":1.0}',
        b'{"version":1,"more":1}',
        b'{"version":1,"upper_size":NaN}',
        b'{"version":1,"capabilities":["CHOWN"]}',
        b'{"version":1,"seccomp":"BgAAAAAA"}',
        b'{"version":1,"seccomp":"?"}',
        b'{"version":1,"capabilities":["CAP_CHOWN","CAP_CHOWN"]}',
        b'{"version":1,"capabilities":["CAP_"]}',
        b'{"version":1,"hostname":"\\ud800"}',
        b'{"version":1,"hostname":"-x"}',
        b'{"version":1,"hostname":"a b"}',
        b'{"version":1,"env":["=x"]}',
        b'{"version":1,"env":["novalue"]}',
        b'{"version":1,"cwd":"relative"}',
        b'{"version":1,"files":["passwd"]}',
        b'{"version":1,"files":["hosts","hosts"]}',
        b'{"version":1,"terminal":1}',
        b"\xff",
        b"[" * 100_000,
        b" " * (members.DOCUMENT_LIMIT + 1),
    ],
    ids=lambda data: data[:30].decode("latin-1").strip() or "long",
)
def test_overrides_that_are_none(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        Overrides.parse(data)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "volumes",
    [
        [("a", "/x"), ("a", "/y")],
        [("a", "/x"), ("b", "/x")],
        [("../a", "/x")],
        [(".a", "/x")],
        [("", "/x")],
        [("a" * 65, "/x")],
        [("a/b", "/x")],
        [("a", "x")],
        [("a", "/x/../y")],
        [("a", "/x//y")],
        [("a", "/x/")],
        [("a", "/")],
        [("a", "/proc")],
        [("a", "/proc/self")],
        [("a", "/sys/fs")],
        [("a", "/dev/null")],
    ],
)
def test_volumes_that_are_none(volumes: list[tuple[str, str]]) -> None:
    with pytest.raises(PeerError):
        Overrides(volumes=tuple(Volume(*volume) for volume in volumes))


@pytest.mark.parametrize(
    "change",
    [
        {"manifest_digest": "sha256:" + "A" * 64},
        {"manifest_digest": "a" * 64},
        {"args": ()},
        {"args": ("",)},
        {"stop_signal": 0},
        {"stop_signal": 65},
        {"scratch": ("x",)},
        {"rlimits": "x"},
        {"rlimits": (Rlimit("RLIMIT_CORE", 0, 0), Rlimit("RLIMIT_CORE", 1, 1))},
        {"ambient": ("CAP_BPF",)},
        {"tmpfs": (Tmpfs("/data"),)},
        {"masked": ("/etc/shadow",)},
        {"sealed": ("/proc",)},
    ],
)
def test_statements_that_are_none(change: dict[str, Any]) -> None:
    with pytest.raises((PeerError, AttributeError)):
        replace(FULL, **change)
        LaunchStatement.from_json(replace(FULL, **change).to_json())


@pytest.mark.parametrize("limit", [("NOFILE", 1, 1), ("RLIMIT_NOFILE", 2, 1), ("RLIMIT_NOFILE", -1, 1), ("RLIMIT_x", 1, 1)])
def test_limits_that_are_none(limit: tuple[str, int, int]) -> None:
    with pytest.raises(PeerError):
        Rlimit(*limit)


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/proc", "/sys", "/proc/self/root/etc", "/proc/thread-self/root", "/proc/1/root/app", "/sys/../etc", "sys"],
)
def test_nothing_of_the_image_can_be_hidden(path: str) -> None:
    for member in ("masked", "sealed"):
        with pytest.raises(PeerError):
            Overrides(**{member: (path,)})


@pytest.mark.parametrize("values", [("/proc",), ("/",), ("x",), ("/a", -1), ("/a", 1 << 60), ("/a", 0, 0o10000), ("/dev/null",)])
def test_file_systems_that_are_none(values: tuple[Any, ...]) -> None:
    with pytest.raises(PeerError):
        Tmpfs(*values)


@pytest.mark.parametrize("word", ["commands", "", "env:", "env:A=B", "volumes:data", "volumes:/a/../b", "exec:x", "command:", "*"])
def test_words_that_a_policy_does_not_know(word: str) -> None:
    with pytest.raises(PeerError) as caught:
        LaunchPolicy().with_image("r/i", [word])
    assert caught.value.code == "policy-invalid"
    data = json.dumps({"version": 1, "images": {"r/i": {"allow": [word]}}}).encode()
    with pytest.raises(PeerError) as caught:
        LaunchPolicy.parse(data)
    assert caught.value.code == "policy-invalid"


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"version":2}', b'{"version":1,"default":{"deny":[]}}', b'{"version":1,"images":[]}', b'{"version":1,"x":1}'],
)
def test_policies_that_are_none(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        LaunchPolicy.parse(data)
    assert caught.value.code == "policy-invalid"


def test_an_image_that_is_named_has_its_own_list_only() -> None:
    assert not POLICY.for_image("r/i").allows("env", "B")
    assert POLICY.for_image("r/i").allows("env", "A")
    assert POLICY.for_image("r/other").allows("env", "B")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FULL.to_json(), "x"]), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FULL.to_json())), json_values, max_size=4))
def test_any_json_parses_or_is_refused(changes: dict[str, Any]) -> None:
    data = json.dumps(FULL.to_json() | changes).encode()
    for parse in (LaunchStatement.parse, Overrides.parse, LaunchPolicy.parse):
        try:
            parse(data)
        except PeerError as error:
            assert error.code in ("malformed", "policy-invalid")
