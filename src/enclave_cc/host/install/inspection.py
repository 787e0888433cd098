"""Whether containerd is still set up as `node setup` left it: a line of `enclave-cc doctor`."""

from __future__ import annotations

import socket
from pathlib import Path

from enclave_cc.errors import EnclaveCcError
from enclave_cc.host.install import changes, drop_in, node
from enclave_cc.host.install import containerd as installed
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.doctor import Finding, Verdict

_NAME = "containerd"
_AGAIN = "Run `enclave-cc node setup --containerd` again."


def examine(settings: Configuration) -> Finding:
    """Raises nothing."""
    try:
        return _examine(settings)
    except EnclaveCcError as error:
        return Finding(_NAME, Verdict.MISSING, error.what, error.fix)


def _examine(settings: Configuration) -> Finding:
    record = changes.read_record(node.record_path(settings))
    if record is None:
        return Finding(_NAME, Verdict.NOTE, "not set up: pods come from `enclave-cc run` only", _AGAIN.replace(" again", ""))
    made, note = record
    altered = [str(change.path) for change in made if not changes.is_intact(change)]
    if altered:
        return Finding(_NAME, Verdict.MISSING, f"changed since it was set up: {', '.join(altered)}", _AGAIN)
    found = installed.detect(str(note["binary"]), Path(str(note["containerd"])))
    ours = found.file.parent / node.DROP_IN
    if note["repeats"] != drop_in.digest(found, found.plugins(installed.read(found.file), without=ours)):
        return Finding(
            _NAME, Verdict.MISSING, f"what the drop-in repeats of {found.file} changed, and the drop-in hides it", _AGAIN
        )
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(settings.run / "snapshotter.sock"))
        except OSError:
            return Finding(_NAME, Verdict.MISSING, "the snapshotter does not run", f"Start it: systemctl start {node.SNAPSHOTTER}.")
    return Finding(_NAME, Verdict.OK, f"containerd {found.version[0]}.{found.version[1]} knows enclave-cc")
