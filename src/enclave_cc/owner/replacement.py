"""Replaces a file of keys: it is the old one or the new one at any time, on disk when this returns."""

from __future__ import annotations

import os
from pathlib import Path

from enclave_cc.errors import explain_os_error


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Writes `data` beside `path` and renames it. What a killed writer left there, perhaps a private key, goes first.

    The directory is the caller's alone. Raises `EnvironmentFault`: "disk-full", "environment"."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        for left in path.parent.glob(f".{path.name}.*.new"):
            left.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # several replacements become durable in their order
        finally:
            os.close(directory)
    except OSError as error:
        raise explain_os_error(error, str(path)) from error
    finally:
        new.unlink(missing_ok=True)
