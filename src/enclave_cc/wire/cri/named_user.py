"""The ids that stand for "the user that the image names" where the host has to put a number.

CRI turns a named USER of an image into numbers by /etc/passwd and /etc/group of the container's root file system. The
root file system of an enclave image is not on the host, so the snapshotter offers files that map every name of the
image's own USER to these two numbers. Whoever meets them in an OCI runtime spec knows that nobody chose a user: the
enclave finds the real ids in the image's own files. Neither is an id that a distribution or a range of subordinate ids
gives out, and both are below 2**31, where containerd and runc stop.
"""

from __future__ import annotations

MARKED_UID = 0x7ECC_0001
MARKED_GID = 0x7ECC_0002


def make_passwd(users: set[str]) -> str:
    """passwd(5) for the USERs (`user[:group]`) of one or more images; a numeric user keeps its number."""
    lines = set()
    for user in users:
        name = user.partition(":")[0]
        if _is_id(name):
            lines.add(f"id-{int(name)}:x:{int(name)}:{MARKED_GID}::/:/bin/false\n")
        elif _is_name(name):
            lines.add(f"{name}:x:{MARKED_UID}:{MARKED_GID}::/:/bin/false\n")
    return "".join(sorted(lines))


def make_group(users: set[str]) -> str:
    """group(5) for the groups that the USERs name."""
    names = {user.partition(":")[2] for user in users}
    return "".join(f"{name}:x:{MARKED_GID}:\n" for name in sorted(names) if _is_name(name) and not _is_id(name))


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= 0x7FFF_FFFF


def _is_name(name: str) -> bool:
    """Nothing that would break a line of the file."""
    return bool(name) and name.isprintable() and ":" not in name and not name.startswith(("+", "-", "#"))
