"""A plain rootfs under the real supervisor, in namespaces of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from boot_container import APPLETS, DEADLINE, Container, Run  # noqa: E402  (lies here)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busybox root with two users."""
    root = tmp_path_factory.mktemp("image")
    for name in ("bin", "etc", "tmp", "home/bob"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nbob:x:1001:\naudio:x:29:bob\nwheel:x:10:bob,carol\n")
    (root / "etc/resolv.conf").symlink_to("../run/resolve/stub.conf")  # dangles, as in many images
    (root / "link").symlink_to("data")  # dangles until something is mounted there
    (root / "etc/secret").write_text("root only\n")
    (root / "etc/secret").chmod(0o600)
    (root / "bin/noexec").write_text("#!/bin/sh\n")
    (root / "bin/notelf").write_bytes(b"\x7fELF garbage")
    (root / "bin/notelf").chmod(0o755)
    return root


@pytest.fixture
def run(image: Path, tmp_path: Path) -> Iterator[Run]:
    """Starts a workload: `run("id", user="bob")`. Members of the plan are keywords; see supervise.py."""
    containers: list[Container] = []
    with tempfile.TemporaryDirectory(prefix="ecc-", dir="/tmp") as short:

        def start(*args: str, stdin: int = subprocess.DEVNULL, **members: object) -> Container:
            directory = Path(short) / str(len(containers))
            directory.mkdir()
            keys = ("env", "cwd", "user", "groups", "capabilities", "ambient", "no_new_privileges", "rlimits", "terminal")
            process = {"args": args, **{key: members.pop(key) for key in keys if key in members}}
            plan = {"image": str(image), "directory": str(directory), "host": {}, "owners": {}, "process": process, **members}
            (directory / "plan.json").write_text(json.dumps(plan))
            command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
            popen = subprocess.Popen(
                [*command, sys.executable, str(HERE / "supervise.py"), str(directory / "plan.json")],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            containers.append(Container(directory, popen))
            return containers[-1]

        yield start
        for container in containers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(container.process.pid, signal.SIGKILL)
            container.process.communicate(timeout=DEADLINE)
