"""Stopping and removing pods of other processes: their supervisor does the work, we ask and wait."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, UsageError
from enclave_cc.host.sandbox import cgroups, control_client, directories, records
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories, PodLock
from enclave_cc.host.sandbox.reconcile import take_down_dead
from enclave_cc.host.sandbox.states import State
from enclave_cc.wire.control import message

_INTERVAL = 0.01
_IN_ITS_MANAGER = "End it there: kubectl delete pod, crictl stopp and rmp, or ctr tasks kill."
_GIVE_UP = 2.0  # seconds for a start to be given up in good order


def stop(configuration: Configuration, directory: Path, *, grace: float) -> None:
    """Asks the workload to end by its stop signal, kills it after `grace` seconds. A pod that has ended is no error.

    Raises `EnvironmentFault("deadline")` when its supervisor does not take it down, `UsageError("wrong-state")` for a live
    pod of a container manager's.
    """
    if not is_live(configuration, directory):
        return
    record = directories.read_json(directory / "pod.json")
    records.require_own(record, _IN_ITS_MANAGER)
    container = directories.shorten(str(record.get("container", "")))
    control = directory / "c" / container / "shared/control.sock"
    try:
        control_client.ask(control, message.StopRequest(), deadline=min(grace, configuration.deadlines.stop) or 0.001)
    except EnclaveCcError:
        _signal_supervisor(record)  # the workload does not run yet: the start is given up
    if not _wait(lambda: not is_live(configuration, directory), grace):
        kill(configuration, directory)


def kill(configuration: Configuration, directory: Path) -> None:
    """Kills every process of the pod's containers and waits until it is taken down. Raises `EnvironmentFault("deadline")`."""
    identifier = directory.name
    until = time.monotonic() + configuration.deadlines.remove
    record = directories.read_json(directory / "pod.json")
    if record.get("state") in (State.CREATED, State.STARTING):
        _signal_supervisor(record)  # it gives the start up, and does not take the deaths for the cause
        if _wait(lambda: not is_live(configuration, directory), _GIVE_UP):
            return
    while is_live(configuration, directory):
        for pid in cgroups.list_processes(identifier):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if _wait(lambda: not is_live(configuration, directory), 0.2):
            return
        _signal_supervisor(directories.read_json(directory / "pod.json"))
        if time.monotonic() > until:
            raise EnvironmentFault("deadline", f"pod {identifier} was not taken down within {configuration.deadlines.remove:g} s")


def remove(configuration: Configuration, directory: Path, *, force: bool) -> None:
    """Removes a pod and everything it left. Raises `UsageError("wrong-state")` for a live one without `force`,
    and for one that a container manager runs.
    """
    places = Directories.of(configuration)
    if is_live(configuration, directory):
        if not force:
            raise UsageError("wrong-state", "the pod still runs", "Stop it first, or use `rm -f`.")
        records.require_own(directories.read_json(directory / "pod.json"), _IN_ITS_MANAGER)
        kill(configuration, directory)
    live = places.pods / directory.name
    if live.exists():  # its supervisor died
        lock = PodLock.try_take(places.locks / directory.name)
        if lock is None:
            raise EnvironmentFault("deadline", "another command takes this pod down", "Try again.")
        try:
            take_down_dead(configuration, directory.name)
        finally:
            lock.release(remove=not live.exists())
    records.remove(configuration, directory.name)


def is_live(configuration: Configuration, directory: Path) -> bool:
    """A supervisor holds the pod."""
    places = Directories.of(configuration)
    if not (places.pods / directory.name).exists():
        return False
    lock = PodLock.try_take(places.locks / directory.name)
    if lock is None:
        return True
    lock.release(remove=not (places.pods / directory.name).exists())  # it may have ended meanwhile
    return False


def _signal_supervisor(record: dict[str, object]) -> None:
    pid = record.get("supervisor")
    if isinstance(pid, int) and pid > 1:
        with suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_INTERVAL)
    return True
