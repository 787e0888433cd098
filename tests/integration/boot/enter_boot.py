"""Builds the app container's root out of this machine's files, enters it and becomes boot init: what runc does.

Started under unshare(1) as PID 1. argv: a JSON file.
"""

import json
import os
import sys
from pathlib import Path

from enclave_cc.enclave.boot import syscalls

ROOT = "/mnt"  # in this mount namespace only


def bind(source: str, target: str) -> None:
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    syscalls.attach_mount(syscalls.clone_mount(source, recursive=True), target)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    syscalls.make_private("/")
    syscalls.attach_mount(syscalls.create_filesystem("tmpfs", []), ROOT)
    for top in ("/usr", "/bin", "/lib", "/lib64", "/dev", "/sys", *plan["python"]):
        bind(top, ROOT + top)
    for source, target in plan["binds"]:
        bind(source, ROOT + target)
    for path in ("/proc", "/mnt", "/etc/enclave-cc"):
        Path(ROOT + path).mkdir(parents=True, exist_ok=True)
    for name, content in plan["etc"].items():
        Path(f"{ROOT}/etc/enclave-cc/{name}").write_text(content)
    syscalls.attach_mount(syscalls.create_filesystem("proc", []), ROOT + "/proc")
    os.chdir(ROOT)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    os.execve(plan["interpreter"], [plan["interpreter"], *plan["args"]], {"BOOT_SECRET": "x", "PYTHONPATH": plan["path"]})


main()
