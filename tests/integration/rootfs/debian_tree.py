"""A real root file system: Debian's minbase with Python, made once per machine with debootstrap."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("ENCLAVE_CC_TEST_CACHE", "/var/cache/enclave-cc-tests"))
SUITE = "bookworm"


def apt_mirror() -> str:
    """The Debian mirror that this machine's apt uses for the suite."""
    described = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)|$(RELEASE)|$(COMPONENT)|$(CREATED_BY)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    for line in described.splitlines():
        site, release, component, created_by = line.split("|")
        if (release, component, created_by) == (SUITE, "main", "Packages"):
            return re.sub(r"^mirror\+", "", site)
    raise RuntimeError(f"apt knows no mirror for {SUITE}")


def debian_tree() -> Path:
    """The unpacked tree; treat it as read-only. The first call on a machine takes about a minute."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = CACHE / f"python-{SUITE}"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            partial = CACHE / f"python-{SUITE}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", "--include=python3", SUITE, str(partial), apt_mirror()]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
            if done.returncode:
                raise RuntimeError("debootstrap failed: " + done.stdout[-2000:] + done.stderr[-2000:])
            shutil.rmtree(partial / "var/cache/apt", ignore_errors=True)
            partial.rename(tree)
    return tree


def debian_layer() -> bytes:
    """The tree as one tar layer, as GNU tar writes it."""
    command = ["tar", "--create", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*", "--format=posix"]
    return subprocess.run([*command, "-C", str(debian_tree()), "."], check=True, stdout=subprocess.PIPE, timeout=240).stdout
