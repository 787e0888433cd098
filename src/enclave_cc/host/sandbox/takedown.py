"""Takes down what a pod's journal names: used by its own supervisor, and by the next command after a crash."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import EnclaveCcError, EnvironmentFault
from enclave_cc.host.sandbox import cgroups, journal, network
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.journal import Kind, Step
from enclave_cc.host.sandbox.runc import Runc

_MNT_DETACH = 2
_UNMOUNT_ROUNDS = 64


def undo(configuration: Configuration, pod: str, directory: Path, *, keep_name: bool = False) -> None:
    """Undoes every step of the pod in `directory`, in reverse but for containers, which go first and together.

    May be called again after it failed or was killed. Raises the first `EnclaveCcError`, after all steps were tried.
    """
    steps = journal.read(directory / "journal")
    runc = Runc(configuration.runc, Directories.of(configuration).runc, deadline=configuration.deadlines.runc)
    failures: list[EnclaveCcError] = []
    containers = [step.details["id"] for step in steps if step.kind is Kind.CONTAINER]
    # Dead before deleted: `runc delete` then has nothing to wait for, and no container sees another go.
    for pid in cgroups.list_processes(pod):
        with suppress(OSError):
            os.kill(pid, 9)
    _run_all([_attempt(functools.partial(runc.delete, container), failures) for container in containers])
    for step in reversed(steps):
        if step.kind is Kind.NAME and keep_name:
            continue
        _attempt(functools.partial(_undo_step, configuration, pod, step), failures)()
    if failures:
        raise failures[0]


def remove_directory(directory: Path) -> None:
    """Removes a pod's directory. What is mounted below it is unmounted, never followed. Raises `EnvironmentFault`."""
    import shutil  # 2 ms; a start does without

    _unmount_below(directory)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise EnvironmentFault("environment", f"{directory} cannot be removed", "See what is mounted or open below it.")


def _undo_step(configuration: Configuration, pod: str, step: Step) -> None:
    match step.kind:
        case Kind.CONTAINER:
            pass
        case Kind.CGROUP:
            if not cgroups.remove_pod(pod, deadline=configuration.deadlines.remove):
                raise EnvironmentFault("environment", f"the control groups of pod {pod} are still in use")
        case Kind.NETWORK:
            network.detach(configuration, step.details["container"], step.details.get("netns", ""))
        case Kind.LEASE | Kind.NAME:
            Path(step.details["path"]).unlink(missing_ok=True)


def _attempt(action: Callable[[], None], failures: list[EnclaveCcError]) -> Callable[[], None]:
    def attempt() -> None:
        try:
            action()
        except EnclaveCcError as error:
            failures.append(error)
        except OSError as error:
            failures.append(EnvironmentFault("environment", f"taking a pod down: {error}"))

    return attempt


def _run_all(actions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=action, daemon=True) for action in actions[1:]]
    for thread in threads:
        thread.start()
    for action in actions[:1]:
        action()
    for thread in threads:
        thread.join()


def _unmount_below(directory: Path) -> None:
    prefix = os.fsencode(directory) + b"/"
    for _ in range(_UNMOUNT_ROUNDS):
        mounts = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        below = [mount for mount in mounts if mount.startswith(prefix)]
        if not below:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        for mount in reversed(below):
            libc.umount2(mount, _MNT_DETACH)
    raise EnvironmentFault("environment", f"something below {directory} cannot be unmounted")
