"""The seccomp filter: its numbers against the kernel's headers, its decisions by running the program."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

from enclave_cc.enclave.boot import capabilities, seccomp
from enclave_cc.wire.launch.combination import DEFAULT_CAPABILITIES

HEADERS = {2: "x86_64-linux-gnu/asm/unistd_64.h", 3: "x86_64-linux-gnu/asm/unistd_32.h", 4: "asm-generic/unistd.h"}
X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026
DOCKER = capabilities.parse_names(DEFAULT_CAPABILITIES)
NEW_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)


def _read_numbers(column: int) -> dict[str, int]:
    text = (Path("/usr/include") / HEADERS[column]).read_text()
    return {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", text)}


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Runs the filter as the kernel would (Documentation/networking/filter.rst)."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    accumulator = at = 0
    while True:
        code, yes, no, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return k
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if taken else no


@pytest.mark.parametrize("column", [2, 3, 4])
def test_numbers_are_the_kernels(column: int) -> None:
    numbers = _read_numbers(column)
    assert {call[0]: call[column] for call in seccomp.CALLS} == {call[0]: numbers.get(call[0]) for call in seccomp.CALLS}
    special = {2: (56, 435, 135, 41), 3: (120, 435, 136, 359), 4: (220, 435, 92, 198)}[column]
    assert tuple(numbers[name] for name in ("clone", "clone3", "personality", "socket")) == special


@pytest.mark.parametrize(("machine", "arch", "column"), [("x86_64", X86_64, 2), ("x86_64", I386, 3), ("aarch64", AARCH64, 4)])
def test_decisions(machine: str, arch: int, column: int) -> None:
    program = seccomp.assemble(machine, DOCKER)
    numbers = _read_numbers(column)
    denied = {call[column]: call[1] for call in seccomp.CALLS if call[column] is not None}
    for number in range(600):
        verdict = decide(program, arch, number)
        if number == numbers["clone3"]:
            assert verdict == ENOSYS
        elif number in denied and denied[number] not in capabilities.list_names(DOCKER):
            assert verdict == EPERM, number
        else:
            assert verdict == ALLOW, number


def test_a_capability_opens_its_calls() -> None:
    everything = seccomp.assemble("x86_64", (1 << 41) - 1)
    numbers = _read_numbers(2)
    for name, needed, number, *_ in seccomp.CALLS:
        if number is not None:
            assert decide(everything, X86_64, number) == (ALLOW if needed else EPERM), name
    assert decide(everything, X86_64, numbers["clone3"]) == ALLOW
    assert decide(everything, X86_64, numbers["clone"], 0x20000) == ALLOW


@pytest.mark.parametrize("flag", NEW_NAMESPACES)
def test_new_namespaces_are_denied(flag: int) -> None:
    program = seccomp.assemble("x86_64", DOCKER)
    assert decide(program, X86_64, 56, 0x1200011) == ALLOW  # what fork uses
    assert decide(program, X86_64, 56, 0x1200011 | flag) == EPERM


def test_arguments() -> None:
    program = seccomp.assemble("x86_64", DOCKER)
    assert decide(program, X86_64, 41, 2) == ALLOW  # AF_INET
    assert decide(program, X86_64, 41, 40) == EPERM  # AF_VSOCK
    for persona in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert decide(program, X86_64, 135, persona) == ALLOW
    assert decide(program, X86_64, 135, 0x40000) == EPERM  # ADDR_NO_RANDOMIZE


def test_foreign_calls_do_not_exist() -> None:
    program = seccomp.assemble("x86_64", DOCKER)
    assert decide(program, AARCH64, 64) == ENOSYS
    assert decide(program, X86_64, 0x40000000 | 1) == ENOSYS  # x32


def test_docker_denies_no_more_than_a_few_of_what_we_allow() -> None:
    """What containers-common's profile leaves out and we do not deny is listed here, so that a change is seen."""
    profile = Path("/usr/share/containers/seccomp.json")
    if not profile.exists():
        pytest.skip("containers-common is not installed")
    theirs = {
        name
        for rule in json.loads(profile.read_text())["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("includes", {}).get("caps")
        for name in rule["names"]
    }
    program = seccomp.assemble("x86_64", DOCKER)
    extra = {name for name, n in _read_numbers(2).items() if name not in theirs and decide(program, X86_64, n) == ALLOW}
    assert extra == {
        "afs_syscall", "chroot", "futex_waitv", "getpmsg", "io_pgetevents", "putpmsg", "security", "tuxcall", "vmsplice", "vserver",
    }  # fmt: skip
