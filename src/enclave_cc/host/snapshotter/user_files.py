"""/etc/passwd and /etc/group for containers whose image is inside the enclave.

CRI turns a named USER of an image into numbers by these files of the container's root file system, and fails without
them. So every name of the image's own USER gets the numbers of `image_user`, which mean "the user that the image names":
the enclave finds the real ids in the image's own files.
"""

from __future__ import annotations

from enclave_cc.host.sandbox import image_user


def make_passwd(users: set[str]) -> str:
    """passwd(5) for the USERs (`user[:group]`) of one or more images; a numeric user keeps its number."""
    lines = set()
    for user in users:
        name = user.partition(":")[0]
        if _is_id(name):
            lines.add(f"id-{int(name)}:x:{int(name)}:{image_user.GID}::/:/bin/false\n")
        elif _is_name(name):
            lines.add(f"{name}:x:{image_user.UID}:{image_user.GID}::/:/bin/false\n")
    return "".join(sorted(lines))


def make_group(users: set[str]) -> str:
    """group(5) for the groups that the USERs name."""
    names = {user.partition(":")[2] for user in users}
    return "".join(f"{name}:x:{image_user.GID}:\n" for name in sorted(names) if _is_name(name) and not _is_id(name))


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= 0x7FFF_FFFF


def _is_name(name: str) -> bool:
    """Nothing that would break a line of the file."""
    return bool(name) and name.isprintable() and ":" not in name and not name.startswith(("+", "-", "#"))
