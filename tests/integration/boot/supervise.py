"""Runs the real supervisor on a plain rootfs: what `enclave.boot.__main__` does after the mount.

Started by the `container` fixture under unshare(1) as PID 1 of a PID namespace of its own. argv: a JSON file.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from enclave_cc.enclave.boot import filesystem, syscalls
from enclave_cc.enclave.boot.control import Listener
from enclave_cc.enclave.boot.init import Supervisor
from enclave_cc.enclave.boot.launch import Launch
from enclave_cc.enclave.boot.process import ProcessSpec
from enclave_cc.enclave.boot.signals import SignalPipe
from enclave_cc.enclave.boot.status import StatusBoard
from enclave_cc.errors import EnclaveCcError
from enclave_cc.wire.launch.mounts import Tmpfs, Volume


def lay_out(plan: dict) -> str:
    """This namespace's /run and /mnt, as runc and the mounter would have made them; the rootfs' path."""
    syscalls.make_private("/")
    for path in ("/run", "/mnt"):
        syscalls.attach_mount(syscalls.create_filesystem("tmpfs", []), path)
    Path("/run/enclave-cc").mkdir()
    for name, source in plan["host"].items():
        target = Path("/run/enclave-cc") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            target.mkdir()
        else:
            target.touch()
        syscalls.attach_mount(syscalls.clone_mount(source), str(target))
    root = "/mnt/root"
    Path(root).mkdir()
    syscalls.attach_mount(syscalls.create_filesystem("tmpfs", []), root)
    shutil.copytree(plan["image"], root, symlinks=True, dirs_exist_ok=True)
    os.chmod(root, 0o755)
    for path, uid in plan["owners"].items():
        os.chown(f"{root}{path}", uid, uid)
    return root


def main() -> int:
    plan = json.loads(Path(sys.argv[1]).read_text())
    stdio = [os.dup(fd) for fd in range(3)]
    log = os.open(f"{plan['directory']}/boot.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    root = lay_out(plan)
    board = StatusBoard(plan["directory"], "c1")
    spec = plan["process"]
    try:
        process = ProcessSpec(
            args=tuple(spec["args"]),
            env=tuple(spec.get("env", ())),
            cwd=spec.get("cwd", "/"),
            user=spec.get("user", ""),
            groups=tuple(spec.get("groups", ())),
            capabilities=spec.get("capabilities", 0),
            ambient=spec.get("ambient", 0),
            no_new_privileges=spec.get("no_new_privileges", False),
            rlimits=tuple(tuple(limit) for limit in spec.get("rlimits", ())),
            terminal=spec.get("terminal", False),
        )
        view = filesystem.View(
            tuple(Volume(*volume) for volume in plan.get("volumes", ())),
            tuple(plan.get("files", ())),
            tuple(plan.get("scratch", ())),
            plan.get("read_only_root", False),
            tuple(Tmpfs(*place) for place in plan.get("tmpfs", ())),
            tuple(plan.get("masked", ())),
            tuple(plan.get("sealed", ())),
        )
        launch = Launch(process, view, plan.get("hostname"), plan.get("allow_exec", False), plan.get("stop_signal", 15))
        server = None
        if plan.get("server"):
            server = os.fork()
            if server == 0:
                os.execvp("sleep", ["sleep", "1000"])
        return Supervisor(
            launch,
            root,
            board=board,
            signals=SignalPipe(),
            listener=Listener(f"{plan['directory']}/control.sock"),
            stdio=stdio,
            server_pid=server,
            start_deadline=plan.get("start_deadline", 10.0),
        ).run()
    except EnclaveCcError as error:
        board.fail(error, error.exit)
        return error.exit


if __name__ == "__main__":
    sys.exit(main())
