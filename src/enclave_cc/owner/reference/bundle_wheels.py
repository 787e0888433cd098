"""The locked third-party packages of a bundle: fetched by hash, unpacked without running anything of theirs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, foreign

# Fixed, so that every machine picks the same wheel of those that the lock allows. Debian 12 has glibc 2.36.
_TAGS = (
    *("--platform", "manylinux_2_34_x86_64", "--platform", "manylinux_2_28_x86_64"),
    *("--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"),
    *("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
)
# cryptography needs cffi's C module alone; its C parser would be 1.5 MB of code that nothing calls.
_UNUSED = ("cffi/", "pycparser/", "zstandard/_cffi.", "zstandard/backend_cffi.py", "isal/igzip.py", "isal/__main__.py")
_KEPT = re.compile(r"\.py$|\.so(\.\d+)*$")


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "enclave-cc" / "wheels"


def fetch_wheels(requirements: Path, cache: Path, *, deadline: float = 600.0) -> list[Path]:
    """The wheels that `requirements` (a pip lock with hashes) names, from `cache` or the package index.

    1. Each file's SHA-256 is one that the lock names.
    2. There are as many files as requirements.

    Raises `UsageError` for a lock without hashes, `EnvironmentFault` when pip fails.
    """
    text = requirements.read_text()
    hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))
    count = len(re.findall(r"^[A-Za-z0-9][A-Za-z0-9._-]*==", text, re.MULTILINE))
    if not hashes or not count:
        raise UsageError("usage", f"{requirements} is not a lock with hashes")
    place = cache / hashlib.sha256("\0".join((text, *_TAGS)).encode()).hexdigest()[:32]
    wheels = sorted(place.glob("*.whl"))
    if len(wheels) == count and _hashes_hold(wheels, hashes):
        return wheels
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
        _run_pip(requirements, Path(scratch), deadline)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if not _hashes_hold(wheels, hashes) or len(wheels) != count:  # 1, 2
            raise EnvironmentFault("environment", f"pip brought other wheels than {requirements.name} names")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return [wheel.rename(place / wheel.name) for wheel in wheels]


def read_wheels(wheels: list[Path]) -> Iterator[tuple[str, bytes]]:
    """(path below site-packages, content) of every module and shared library that the programs may load."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.startswith(("/", "..")) or "/../" in name:
                    raise UsageError("usage", f"{wheel.name} holds a path that leaves it")
                if _KEPT.search(name) and not name.startswith(_UNUSED) and ".dist-info/" not in name and "/tests/" not in name:
                    yield name, archive.read(name)


def _hashes_hold(wheels: list[Path], hashes: set[str]) -> bool:
    return all(hashlib.sha256(wheel.read_bytes()).hexdigest() in hashes for wheel in wheels)


def _run_pip(requirements: Path, directory: Path, deadline: float) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", *_TAGS, "--dest", str(directory), "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=deadline, check=False)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault("deadline", f"pip took more than {deadline:g} s") from error
    if done.returncode:
        last = done.stderr.strip().rpartition(b"\n")[2]
        raise EnvironmentFault(
            "environment", f"pip cannot fetch the locked wheels: {foreign(last)}", "Check the network and pip's index."
        )
