"""Setting a node's containerd up for enclave-cc, and undoing it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.host.install import changes, drop_in, toml_text
from enclave_cc.host.install import containerd as installed
from enclave_cc.host.install.changes import Change
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.shim import launcher
from enclave_cc.record import record

SHIM = "containerd-shim-rune-v2"
SNAPSHOTTER = "enclave-cc-snapshotter"
_UNIT_NAME = f"{SNAPSHOTTER}.service"
DROP_IN = "conf.d/enclave-cc.toml"
RUNTIME_CLASS = """apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: enclave-cc
handler: enclave-cc
"""
_UNIT = """[Unit]
Description=enclave-cc's snapshotter for containerd
Before=containerd.service

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
KillMode=mixed
Restart=always
RestartSec=1
OOMScoreAdjust=-999
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target containerd.service
"""


@record
class Site:
    """Where things go. `links`: a directory on containerd's PATH; `units`: systemd's, or None without systemd."""

    file: Path
    binary: str
    links: Path
    units: Path | None


def find_program(name: str) -> Path:
    """Beside the interpreter that runs us. Raises `EnvironmentFault("missing-tool")`."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise EnvironmentFault("missing-tool", f"there is no {path}", "Install enclave-cc with its node extra: enclave-cc[node].")
    return path


def record_path(settings: Configuration) -> Path:
    return settings.state / "install/containerd.json"


def set_up(settings: Configuration, site: Site, *, per_runtime: bool) -> list[Path]:
    """Makes the changes, after undoing those of an earlier set-up; returns the paths. containerd is asked whether it takes
    its new configuration; if not, everything is undone. Raises `UsageError`, `EnvironmentFault`.
    """
    record = record_path(settings)
    if changes.read_record(record) is not None:
        changes.undo(record)
    found = installed.detect(site.binary, site.file)
    if per_runtime and found.version < (1, 7):
        raise UsageError("usage", "containerd 1.6 has one snapshotter for the whole node", "Leave --per-runtime out.")
    before = found.dump()
    choice = drop_in.Choice(settings.run / "snapshotter.sock", settings.state / "snapshots", per_runtime)
    planned = plan(settings, site, found, choice, before)
    repeats = drop_in.digest(found, found.plugins(installed.read(site.file)))
    try:
        changes.apply(record, planned, {"containerd": str(site.file), "binary": site.binary, "repeats": repeats})
        drop_in.check(found, before, found.dump(), choice)
    except BaseException:
        changes.undo(record)
        raise
    return [change.path for change in planned]


def plan(
    settings: Configuration, site: Site, found: installed.Containerd, choice: drop_in.Choice, before: Mapping[str, Any]
) -> list[Change]:
    """In the order in which they are made: the main file, which makes them count, last.

    `before`: what containerd makes of its configuration now.
    """
    root = Path(str(before.get("root") or settings.containerd_root))
    document = installed.read(site.file)
    target = site.file.parent / DROP_IN
    directories = [site.file.parent, target.parent, site.links, *([site.units] if site.units else [])]
    planned = [Change(path, "directory") for path in _missing(directories)]
    link = site.links / SHIM
    program = find_program(SHIM)
    if link != program:
        if link.is_symlink() or link.exists():
            raise UsageError("already-exists", f"{link} is there already", "Remove it, or name another directory with --links.")
        # Not a link to pip's console script: that loads `site` at each start of a pod.
        variables = {"ENCLAVE_CC_CONFIG": str(Path(settings.source).resolve())} if Path(settings.source).is_file() else {}
        planned.append(Change(link, "file", launcher.make_launcher(variables).encode()))
    if site.units is not None:
        words = [str(find_program(SNAPSHOTTER))]
        if Path(settings.source).is_file():
            words += ["--config", str(Path(settings.source).resolve())]
        words += ["--content", str(root / "io.containerd.content.v1.content")]
        planned.append(changes.replace_file(site.units / _UNIT_NAME, _UNIT.format(command=" ".join(map(_quote, words))).encode()))
    planned.append(changes.replace_file(target, drop_in.make(found, found.plugins(document), choice, before).encode()))
    if not installed.covers(site.file, document.get("imports", []), target):
        text = site.file.read_text() if site.file.exists() else f"version = {found.schema}\n"
        changed, piece = toml_text.add_import(text, str(target))
        planned.append(changes.replace_file(site.file, changed.encode(), piece=piece))
    return planned


def _quote(word: str) -> str:
    """A word of a command in a unit: no specifier, no variable, in one piece (systemd.service(5), "Command lines")."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if set(plain) & set(" \t\"'") else plain


def _missing(directories: Sequence[Path]) -> list[Path]:
    """Those that must be made, with their parents, in order."""
    wanted: list[Path] = []
    for directory in directories:
        for path in (*reversed(directory.parents), directory):
            if not path.exists() and path not in wanted:
                wanted.append(path)
    return wanted


def take_out(settings: Configuration) -> list[Path]:
    """Undoes `set_up`; returns the paths. Raises what `changes.undo` raises."""
    record = record_path(settings)
    found = changes.read_record(record)
    paths = changes.undo(record)
    if found is not None and any(change.path.name == _UNIT_NAME for change in found[0]) and _has_systemd():
        with suppress(EnvironmentFault):  # never enabled
            installed.run("systemctl", "disable", SNAPSHOTTER)  # stops nothing
    return paths


def restart(*, with_snapshotter: bool) -> None:
    """By systemd: containerd, and before it the snapshotter (enabled and started) or after it (stopped).

    Raises `EnvironmentFault`.
    """
    if not _has_systemd():
        raise EnvironmentFault("environment", "systemd does not run here", "Restart snapshotter and containerd by hand.")
    installed.run("systemctl", "daemon-reload")
    if with_snapshotter:
        installed.run("systemctl", "enable", SNAPSHOTTER)
        installed.run("systemctl", "restart", SNAPSHOTTER)
    installed.run("systemctl", "restart", "containerd")
    if not with_snapshotter:
        with suppress(EnvironmentFault):
            installed.run("systemctl", "stop", SNAPSHOTTER)


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()
