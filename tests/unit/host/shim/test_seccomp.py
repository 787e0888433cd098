"""Seccomp profiles of pods, compiled by libseccomp and tried by a child of this process."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from enclave_cc.enclave.boot import syscalls
from enclave_cc.errors import PeerError
from enclave_cc.host.shim import seccomp


def under(program: bytes, action: Callable[[], object]) -> int:
    """The errno that `action` ends in, in a child under the filter; 0 when it does not fail."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            syscalls.install_filter(program)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_list_of_what_is_refused() -> None:
    program = seccomp.compile_profile(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOTTY},
                {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO"},
            ],
        }
    )
    assert len(program) % 8 == 0
    assert under(program, lambda: os.mkdir("/tmp")) == errno.ENOTTY
    assert under(program, lambda: os.stat("/tmp")) == 0
    assert under(program, lambda: os.getpriority(os.PRIO_PROCESS, 0)) == errno.EPERM


def test_arguments() -> None:
    rule = {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}
    refused = {"names": ["close"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOTTY, "args": [rule]}
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]})
    assert under(program, lambda: os.close(5)) == errno.ENOTTY
    assert under(program, lambda: os.close(999)) == errno.EBADF
    either = {**refused, "args": [rule, {"index": 0, "value": 6, "op": "SCMP_CMP_EQ"}]}  # one argument twice: either
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [either]})
    assert [under(program, lambda n=number: os.close(n)) for number in (5, 6, 999)] == [errno.ENOTTY, errno.ENOTTY, errno.EBADF]


def test_architectures_are_in_the_program() -> None:
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]})
    constants = {struct.unpack("<HBBI", program[at : at + 8])[3] for at in range(0, len(program), 8)}
    assert 0x40000003 in constants


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRACE"}]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_XX"}]}],
        },
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}],
        },
    ],
)
def test_what_cannot_be_said_is_refused(profile: dict[str, object]) -> None:
    with pytest.raises(PeerError) as caught:
        seccomp.compile_profile(profile)
    assert caught.value.code == "launch-failed"
