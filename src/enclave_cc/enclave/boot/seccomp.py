"""The seccomp filter of the workload: what docker's default profile takes away, as a classic BPF program.

The host kernel is outside the enclave's trust, so this protects nothing from the host. It keeps a workload that was
broken into from the kernel interfaces by which it could reach boot init: other namespaces, mounts, keyrings, user
namespaces, bpf. Docker lists what it allows; this lists the calls that docker's list leaves out and this kernel offers.
A 64-bit kernel also runs 32-bit programs on x86: they meet the same list by their own numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from enclave_cc.enclave.boot import capabilities, syscalls

# (name, capability that allows it, number on x86_64, on i386, on aarch64), from asm/unistd_64.h, unistd_32.h, asm-generic.
CALLS: tuple[tuple[str, str | None, int | None, int | None, int | None], ...] = (
    ("_sysctl", None, 156, 149, None),
    ("add_key", None, 248, 286, 217),
    ("bdflush", None, None, 134, None),
    ("create_module", None, 174, 127, None),
    ("get_kernel_syms", None, 177, 130, None),
    ("io_uring_enter", None, 426, 426, 426),
    ("io_uring_register", None, 427, 427, 427),
    ("io_uring_setup", None, 425, 425, 425),
    ("kexec_file_load", None, 320, None, 294),
    ("kexec_load", None, 246, 283, 104),
    ("keyctl", None, 250, 288, 219),
    ("migrate_pages", None, 256, 294, 238),
    ("move_pages", None, 279, 317, 239),
    ("nfsservctl", None, 180, 169, 42),
    ("pivot_root", None, 155, 217, 41),
    ("query_module", None, 178, 167, None),
    ("request_key", None, 249, 287, 218),
    ("swapoff", None, 168, 115, 225),
    ("swapon", None, 167, 87, 224),
    ("sysfs", None, 139, 135, None),
    ("uselib", None, 134, 86, None),
    ("userfaultfd", None, 323, 374, 282),
    ("ustat", None, 136, 62, None),
    ("vm86", None, None, 166, None),
    ("vm86old", None, None, 113, None),
    ("fanotify_init", "SYS_ADMIN", 300, 338, 262),
    ("fsconfig", "SYS_ADMIN", 431, 431, 431),
    ("fsmount", "SYS_ADMIN", 432, 432, 432),
    ("fsopen", "SYS_ADMIN", 430, 430, 430),
    ("fspick", "SYS_ADMIN", 433, 433, 433),
    ("lookup_dcookie", "SYS_ADMIN", 212, 253, 18),
    ("mount", "SYS_ADMIN", 165, 21, 40),
    ("mount_setattr", "SYS_ADMIN", 442, 442, 442),
    ("move_mount", "SYS_ADMIN", 429, 429, 429),
    ("open_tree", "SYS_ADMIN", 428, 428, 428),
    ("quotactl", "SYS_ADMIN", 179, 131, 60),
    ("quotactl_fd", "SYS_ADMIN", 443, 443, 443),
    ("setdomainname", "SYS_ADMIN", 171, 121, 162),
    ("sethostname", "SYS_ADMIN", 170, 74, 161),
    ("setns", "SYS_ADMIN", 308, 346, 268),
    ("umount", "SYS_ADMIN", None, 22, None),
    ("umount2", "SYS_ADMIN", 166, 52, 39),
    ("unshare", "SYS_ADMIN", 272, 310, 97),
    ("bpf", "BPF", 321, 357, 280),
    ("perf_event_open", "PERFMON", 298, 336, 241),
    ("open_by_handle_at", "DAC_READ_SEARCH", 304, 342, 265),
    ("reboot", "SYS_BOOT", 169, 88, 142),
    ("chroot", "SYS_CHROOT", 161, 61, 51),
    ("delete_module", "SYS_MODULE", 176, 129, 106),
    ("finit_module", "SYS_MODULE", 313, 350, 273),
    ("init_module", "SYS_MODULE", 175, 128, 105),
    ("get_mempolicy", "SYS_NICE", 239, 275, 236),
    ("mbind", "SYS_NICE", 237, 274, 235),
    ("set_mempolicy", "SYS_NICE", 238, 276, 237),
    ("set_mempolicy_home_node", "SYS_NICE", 450, 450, 450),
    ("acct", "SYS_PACCT", 163, 51, 89),
    ("kcmp", "SYS_PTRACE", 312, 349, 272),
    ("pidfd_getfd", "SYS_PTRACE", 438, 438, 438),
    ("process_madvise", "SYS_PTRACE", 440, 440, 440),
    ("ioperm", "SYS_RAWIO", 173, 101, None),
    ("iopl", "SYS_RAWIO", 172, 110, None),
    ("clock_settime", "SYS_TIME", 227, 264, 112),
    ("clock_settime64", "SYS_TIME", None, 404, 404),
    ("settimeofday", "SYS_TIME", 164, 79, 170),
    ("stime", "SYS_TIME", None, 25, None),
    ("vhangup", "SYS_TTY_CONFIG", 153, 111, 58),
    ("syslog", "SYSLOG", 103, 103, 116),
)
# The kernel has these bits of clone(2)'s flags for new namespaces (include/uapi/linux/sched.h); CLONE_NEWTIME is clone3's.
_CLONE_NAMESPACES = 0x7E020000
_PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, PER_LINUX32, with UNAME26; query
_AF_VSOCK = 40
_EPERM, _ENOSYS = 1, 38

_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY, _JUMP_ALWAYS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16  # struct seccomp_data, little-endian
_X32_BIT = 0x40000000

# audit architecture -> (column of CALLS, clone, clone3, personality, socket)
_X86_64 = (0xC000003E, 2, (56, 435, 135, 41))
_I386 = (0x40000003, 3, (120, 435, 136, 359))
_AARCH64 = (0xC00000B7, 4, (220, 435, 92, 198))
_ARCHITECTURES = {"x86_64": (_X86_64, _I386), "aarch64": (_AARCH64,)}

Instruction = tuple[int, int, int, int]


def install(allowed: int) -> None:
    """Installs the filter for a process that may hold the capabilities `allowed` (a bit mask). Raises `OSError`.

    Needs CAP_SYS_ADMIN in effect, or no_new_privs. All later execs inherit it.
    """
    syscalls.install_filter(assemble(syscalls.MACHINE, allowed))


def assemble(machine: str, allowed: int) -> bytes:
    """The program: 8 bytes an instruction (struct sock_filter)."""
    program: list[Instruction] = [(_LOAD, 0, 0, _AT_ARCH)]
    for audit, column, special in _ARCHITECTURES[machine]:
        body = list(_filter_architecture(column, special, allowed))
        # A conditional jump reaches 255 instructions, an unconditional one any.
        program += [(_JUMP_EQUAL, 1, 0, audit), (_JUMP_ALWAYS, 0, 0, len(body)), *body]
    program.append((_RETURN, 0, 0, _RET_ERRNO | _ENOSYS))  # no such architecture here
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _filter_architecture(column: int, special: tuple[int, int, int, int], allowed: int) -> Iterator[Instruction]:
    clone, clone3, personality, socket = special
    yield (_LOAD, 0, 0, _AT_NUMBER)
    if column == _X86_64[1]:
        yield from ((_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT), _deny(_ENOSYS))
    for call in CALLS:
        number, needed = call[column], call[1]
        if isinstance(number, int) and not (needed and allowed & capabilities.parse_names([str(needed)])):
            yield from ((_JUMP_EQUAL, 0, 1, number), _deny(_EPERM))
    if not allowed & capabilities.SYS_ADMIN:
        # The flags of clone3 are in memory, where no filter can look: ENOSYS makes the C library fall back to clone.
        yield from ((_JUMP_EQUAL, 0, 1, clone3), _deny(_ENOSYS))
        yield from ((_JUMP_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _AT_FIRST_ARGUMENT), (_JUMP_ANY, 0, 1, _CLONE_NAMESPACES))
        yield from (_deny(_EPERM), (_RETURN, 0, 0, _RET_ALLOW))
    yield from ((_JUMP_EQUAL, 0, 4, socket), (_LOAD, 0, 0, _AT_FIRST_ARGUMENT), (_JUMP_EQUAL, 0, 1, _AF_VSOCK))
    yield from (_deny(_EPERM), (_RETURN, 0, 0, _RET_ALLOW))
    yield from ((_JUMP_EQUAL, 0, len(_PERSONALITIES) + 2, personality), (_LOAD, 0, 0, _AT_FIRST_ARGUMENT))
    for index, value in enumerate(_PERSONALITIES):
        yield (_JUMP_EQUAL, len(_PERSONALITIES) - index, 0, value)
    yield from (_deny(_EPERM), (_RETURN, 0, 0, _RET_ALLOW))


def _deny(number: int) -> Instruction:
    return (_RETURN, 0, 0, _RET_ERRNO | number)
