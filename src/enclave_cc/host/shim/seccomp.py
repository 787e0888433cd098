"""An OCI seccomp profile as the program that the kernel takes, by libseccomp, which runc brings along.

Source: OCI runtime-spec, config-linux.md, "Seccomp"; libseccomp, seccomp.h (2.5).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from typing import Any

from enclave_cc.errors import EnvironmentFault, PeerError, foreign

_LIBRARY = "libseccomp.so.2"
_EPERM = 1
ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
OPERATORS = ("SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ")
# audit architectures; the machine's own is in every filter
ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028, "SCMP_ARCH_AARCH64": 0xC00000B7,
}  # fmt: skip
_NO_SUCH_CALL = -1
_EEXIST = 17


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """8 bytes an instruction (struct sock_filter). Raises `PeerError("launch-failed")` for what no filter can say,
    `EnvironmentFault("missing-tool")` without libseccomp.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EnvironmentFault("missing-tool", f"{_LIBRARY} cannot be loaded: it compiles the pod's seccomp profile") from error
    library.seccomp_init.restype = ctypes.c_void_p
    default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise PeerError("launch-failed", "the seccomp profile's default action is none")
    try:
        for name in profile.get("architectures") or ():
            token = ARCHITECTURES.get(str(name))
            if token is not None:  # another machine's says nothing here
                library.seccomp_arch_add(context, ctypes.c_uint32(token))
        for rule in profile.get("syscalls") or ():
            action = _action(rule.get("action"), rule.get("errnoRet"))
            if action != default:
                for name in rule.get("names") or ():
                    _add(library, context, action, str(name), rule.get("args") or ())
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _action(name: object, number: object) -> int:
    found = ACTIONS.get(str(name))
    if found is None:
        raise PeerError("launch-failed", f"the seccomp action {foreign(name)} is not supported")
    if found == ACTIONS["SCMP_ACT_ERRNO"]:
        return found | (int(number) & 0xFFFF if isinstance(number, int) else _EPERM)
    return found


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, action: int, name: str, args: Any) -> None:
    call = library.seccomp_syscall_resolve_name(name.encode())
    if call == _NO_SUCH_CALL:  # of another kernel, or of none
        return
    for comparisons in _group(args):
        array = (_Comparison * len(comparisons))(*comparisons)
        status = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), call, ctypes.c_uint(len(comparisons)), array)
        if status not in (0, -_EEXIST):
            raise PeerError("launch-failed", f"the seccomp rule for {foreign(name)} cannot be carried out: {os.strerror(-status)}")


def _group(args: Any) -> Iterator[list[_Comparison]]:
    """Conditions that hold together: all of a rule's, but each alone when one argument is named twice (as runc does)."""
    found = []
    for argument in args:
        operator = str(argument.get("op"))
        if operator not in OPERATORS:
            raise PeerError("launch-failed", f"the seccomp comparison {foreign(operator)} is not supported")
        numbers = int(argument.get("value") or 0), int(argument.get("valueTwo") or 0)
        found.append(_Comparison(int(argument["index"]), OPERATORS.index(operator) + 1, *numbers))
    if len({comparison.argument for comparison in found}) == len(found):
        yield found
    else:
        yield from ([comparison] for comparison in found)


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        status = library.seccomp_export_bpf(context, descriptor)
        if status:
            raise PeerError("launch-failed", f"the seccomp profile cannot be compiled: {os.strerror(-status)}")
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)
