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
    groups = [step.details["group"] for step in steps if "group" in step.details]
    for pid in cgroups.list_processes(pod).union(*map(cgroups.list_processes_at, groups)):
        with suppress(OSError):
            os.kill(pid, 9)
    _run_all([_attempt(functools.partial(runc.delete, container), failures) for container in containers])
    for step in reversed(steps):
        if step.kind is Kind.NAME and keep_name:
            continue
        _attempt(functools.partial(_undo_step, configuration, pod, step), failures)()
    if failures:
        raise failures[0]


def kill_orphaned_runc(configuration: Configuration, directory: Path) -> None:
    """Kills calls of runc that outlived the supervisor of the pod in `directory`: one could make a container after `undo`."""
    containers = {step.details["id"] for step in journal.read(directory / "journal") if step.kind is Kind.CONTAINER}
    root = str(Directories.of(configuration).runc)
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = Path(entry.path, "cmdline").read_bytes().decode(errors="replace").split("\0")
            if root in words and containers & set(words):
                os.kill(int(entry.name), 9)


def remove_directory(directory: Path) -> None:
    """Removes a pod's directory. What is mounted below it is unmounted, never followed. Raises `EnvironmentFault`."""
    import shutil  # 2 ms; a start does without

    _unmount_below(directory)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise EnvironmentFault("environment", f"{directory} cannot be removed", "See what is mounted or open below it.")


def _undo_step(configuration: Configuration, pod: str, step: Step) -> None:
    match step.kind:
        case Kind.CONTAINER:  # runc's part of it went first
            group = step.details.get("group")
            if group is not None and not cgroups.remove_at(group, deadline=configuration.deadlines.remove):
                raise EnvironmentFault("environment", f"the control group {group} is still in use")
        case Kind.MOUNT:
            remove_mounts(Path(step.details["path"]))
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


def remove_mounts(place: Path) -> None:
    """Unmounts what is mounted at `place` and below it. Raises `EnvironmentFault`."""
    _unmount(os.fsencode(place), os.fsencode(place) + b"/")


def _unmount_below(directory: Path) -> None:
    _unmount(None, os.fsencode(directory) + b"/")


def _unmount(place: bytes | None, prefix: bytes) -> None:
    for _ in range(_UNMOUNT_ROUNDS):
        mounts = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        below = [mount for mount in mounts if mount.startswith(prefix) or mount == place]
        if not below:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        for mount in reversed(below):
            libc.umount2(mount, _MNT_DETACH)
    raise EnvironmentFault("environment", f"something below {os.fsdecode(prefix)} cannot be unmounted")
