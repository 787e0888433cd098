"""Tokens of the real SoftHSM 2 (Debian's softhsm2) in a directory of the test's own.

A PKCS#11 module reads its configuration once per process, so that all tests of one process share one directory.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "CANARY-PIN-4711"
_directory: Path | None = None


def find_directory() -> Path:
    """The directory of this process's tokens."""
    global _directory
    if _directory is None:
        _directory = Path(tempfile.mkdtemp(prefix="ecc-softhsm-"))
        atexit.register(shutil.rmtree, _directory, ignore_errors=True)
        (_directory / "tokens").mkdir()
        (_directory / "softhsm2.conf").write_text(
            f"directories.tokendir = {_directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ["SOFTHSM2_CONF"] = str(_directory / "softhsm2.conf")
    return _directory


def make_token(label: str) -> None:
    find_directory()
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", PIN, "--module", MODULE],
        check=True,
        capture_output=True,
    )
