"""What is kept of an ended pod: its record and its logs, until `rm`. Records of pods that failed are kept in small number."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from enclave_cc.errors import UsageError, foreign
from enclave_cc.host.sandbox import directories
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.states import State

LOG_NAMES = ("output.log", "output.log.1", "agent.log", "boot.log", "boot-output.log")


def keep(configuration: Configuration, directory: Path, record: Mapping[str, object]) -> None:
    """Copies record and logs of the live pod in `directory` to the records. A full disk keeps less, and is no error."""
    import shutil  # here and below: 2 ms, and only the end of a pod needs it

    places = Directories.of(configuration)
    place = places.records / directory.name
    with suppress(OSError):
        place.mkdir(exist_ok=True, mode=0o700)
        for name in LOG_NAMES:
            source = find_log(directory, name)
            if source is not None:
                shutil.copyfile(source, place / name)
        directories.write_json(place / "pod.json", dict(record))
    if record.get("state") != State.EXITED:
        _forget_oldest(configuration)


def require_own(record: Mapping[str, object], how: str) -> None:
    """Raises `UsageError("wrong-state")` for a pod that a container manager runs; `how` tells what to do there.

    What is done behind its back it would take for a failure, and Kubernetes would start the pod anew.
    """
    manager = record.get("manager")
    if manager:
        what = f"the pod is {manager}'s, and {manager} knows it as {foreign(record.get('managed'))}"
        raise UsageError("wrong-state", what, how)


def find_log(directory: Path, name: str) -> Path | None:
    """A log of a live or recorded pod."""
    record = directories.read_json(directory / "pod.json")
    container = directories.shorten(str(record.get("container", "")))
    candidates = [directory / name, directory / "c" / container / name, directory / "c" / container / "shared" / name]
    return next((path for path in candidates if path.is_file() and not path.is_symlink()), None)


def remove(configuration: Configuration, identifier: str) -> None:
    """Forgets a record and its name. One that is not there is no error."""
    import shutil

    places = Directories.of(configuration)
    name = str(directories.read_json(places.records / identifier / "pod.json").get("name", ""))
    shutil.rmtree(places.records / identifier, ignore_errors=True)
    if name and directories.read_name(places, name) == identifier:
        (places.names / name).unlink(missing_ok=True)


def _forget_oldest(configuration: Configuration) -> None:
    places = Directories.of(configuration)
    failed = []
    for identifier in directories.list_ids(places.records):
        record = directories.read_json(places.records / identifier / "pod.json")
        finished = record.get("finished")
        if record.get("state") != State.EXITED:
            failed.append((finished if isinstance(finished, float) else 0.0, identifier))
    for _, identifier in sorted(failed)[: max(0, len(failed) - configuration.limits.failures_kept)]:
        remove(configuration, identifier)
