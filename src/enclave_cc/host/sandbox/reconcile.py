"""Finds pods whose supervisor is dead and takes down what they left.

Runs at the start of every command that makes or removes pods. A supervisor holds its pod's lock for life, so a lock
that can be taken is proof of its death; holding it keeps others from reconciling the same pod.
"""

from __future__ import annotations

import time

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.sandbox import directories, records, takedown
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories, PodLock
from enclave_cc.host.sandbox.states import FINAL, Event, State, advance


def reconcile(configuration: Configuration) -> list[EnclaveCcError]:
    """Returns what could not be taken down; it is tried again next time."""
    places = Directories.of(configuration)
    failures: list[EnclaveCcError] = []
    for identifier in directories.list_ids(places.pods):
        lock = PodLock.try_take(places.locks / identifier)
        if lock is None:
            continue
        gone = False
        try:
            take_down_dead(configuration, identifier)
            gone = True
        except EnclaveCcError as error:
            failures.append(error)
        finally:
            lock.release(remove=gone)
    for identifier in directories.list_ids(places.locks):
        # a supervisor that was killed between taking its lock and making its directory, or just before its end
        if not (places.pods / identifier).exists():
            lock = PodLock.try_take(places.locks / identifier)
            if lock is not None:
                lock.release(remove=not (places.pods / identifier).exists())
    return failures


def take_down_dead(configuration: Configuration, identifier: str) -> None:
    """Takes down one pod whose lock the caller holds, and keeps its record unless it was run with --rm."""
    places = Directories.of(configuration)
    directory = places.pods / identifier
    record = directories.read_json(directory / "pod.json")
    kept = bool(record) and not record.get("remove")
    takedown.kill_orphaned_runc(configuration, directory)
    takedown.undo(configuration, identifier, directory, keep_name=kept)
    if kept:
        state = State(str(record.get("state", State.CREATED)))
        if state not in FINAL:
            lost = {"code": "internal", "what": "the supervisor of this pod was killed", "fix": "Run it again."}
            record |= {"state": str(advance(state, Event.LOSE)), "error": lost, "finished": time.time()}
        records.keep(configuration, directory, record)
    takedown.remove_directory(directory)
