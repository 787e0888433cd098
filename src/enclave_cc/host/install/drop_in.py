"""The piece of containerd's configuration that makes it know enclave-cc: snapshotter, runtime handler, image settings.

Up to containerd 1.7, an imported file's section of a plug-in replaces that of the main file, so the drop-in repeats what
is configured for CRI already. From 2.0 on, sections are merged and lists replaced, so it repeats the list of snapshotters
that images are unpacked for. It says so in its head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enclave_cc.errors import EnvironmentFault
from enclave_cc.host.install import toml_text
from enclave_cc.host.install.containerd import CRI, IMAGES, Containerd, merge
from enclave_cc.record import record

NAME = "enclave-cc"  # of the runtime handler and of the snapshotter
RUNTIME_TYPE = "io.containerd.rune.v2"
TRANSFER = "io.containerd.transfer.v1.local"  # 2.x: pulls for `ctr` and others that are not CRI
_PLATFORM = "linux/amd64"
_ANNOTATIONS = ["enclave-cc.*"]


@record
class Choice:
    """`socket`: the snapshotter's; `per_runtime`: ours for our handler only, instead of for the whole node."""

    socket: Path
    root: Path
    per_runtime: bool


def make(containerd: Containerd, plugins: Mapping[str, Any], choice: Choice, before: Mapping[str, Any]) -> str:
    """`plugins`: what is configured without us; `before`: what containerd makes of it."""
    document: dict[str, Any] = {}
    if containerd.schema > 1:
        document["version"] = containerd.schema
    proxy: dict[str, Any] = {"type": "snapshot", "address": str(choice.socket)}
    if containerd.version >= (2, 0):
        proxy["exports"] = {"root": str(choice.root), "enable_remote_snapshot_annotations": "true"}
    document["proxy_plugins"] = {NAME: proxy}
    additions = make_sections(containerd, choice)
    # A table of runtimes, once there is one, replaces the built-in one, runc's.
    kept = {name: _describe(runtime) for name, runtime in _runtimes_of(before).items()}
    runtimes = {CRI[containerd.schema]: {"containerd": {"runtimes": kept}}}
    document["plugins"] = {
        name: merge(merge(runtimes.get(name, {}), plugins.get(name, {})), section) for name, section in additions.items()
    }
    head = "# Written by `enclave-cc node setup --containerd`; take it out with `--undo`.\n"
    if not containerd.replaces_sections:
        document["plugins"][TRANSFER] = {"unpack_config": _list_unpackers(plugins)}
        head += (
            "# containerd replaces a list by that of an imported file, so the unpack_config of the main file is repeated here.\n"
            "# After changing it there, run `enclave-cc node setup --containerd` again.\n"
        )
    else:
        head += (
            "# This containerd replaces a plug-in's whole section by that of an imported file, so what the main file says of\n"
            "# CRI is repeated here. After changing it there, run `enclave-cc node setup --containerd` again.\n"
        )
    return head + "\n" + toml_text.encode(document)


def make_sections(containerd: Containerd, choice: Choice) -> dict[str, Any]:
    """What we add to [plugins]."""
    runtime: dict[str, Any] = {
        "runtime_type": RUNTIME_TYPE,
        "pod_annotations": _ANNOTATIONS,
        "container_annotations": _ANNOTATIONS,
        # The shim refuses devices; a privileged pod asks for all capabilities, and for what devices there are.
        "privileged_without_host_devices": True,
    }
    if choice.per_runtime:
        runtime["snapshotter"] = NAME
    images: dict[str, Any] = {"disable_snapshot_annotations": False}
    if not choice.per_runtime:
        images["snapshotter"] = NAME
    platforms = {"runtime_platforms": {NAME: {"snapshotter": NAME}}} if choice.per_runtime else {}
    if containerd.schema == 3:
        return {CRI[3]: {"containerd": {"runtimes": {NAME: runtime}}}, IMAGES: {**images, **platforms}}
    sections: dict[str, Any] = {CRI[containerd.schema]: {"containerd": {**images, "runtimes": {NAME: runtime}}}}
    if containerd.version >= (2, 0) and platforms:
        # 2.x turns an older file's section into its own two, and loses a runtime's snapshotter on the way.
        sections[IMAGES] = platforms
    return sections


def _list_unpackers(plugins: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For which snapshotters the transfer service unpacks images: those configured, or its default one, and ours."""
    configured = list(plugins.get(TRANSFER, {}).get("unpack_config") or [{"platform": _PLATFORM, "snapshotter": "overlayfs"}])
    if any(item.get("snapshotter") == NAME for item in configured):
        return configured
    return [*configured, {"platform": _PLATFORM, "snapshotter": NAME}]


def check(containerd: Containerd, before: Mapping[str, Any], dump: Mapping[str, Any], choice: Choice) -> None:
    """That containerd, with the drop-in, knows what it must and all runtimes it knew before. Raises `EnvironmentFault`."""
    _, images = _cri_of(dump)
    runtimes = _runtimes_of(dump)
    runtime = runtimes.get(NAME, {})
    proxy = dump.get("proxy_plugins", {}).get(NAME, {})
    facts = {
        "the runtimes that were there": set(_runtimes_of(before)) <= set(runtimes),
        "the runtime handler": runtime.get("runtime_type") == RUNTIME_TYPE,
        "the snapshotter's socket": proxy.get("address") == str(choice.socket),
        "the labels that snapshots need": images.get("disable_snapshot_annotations") is False,
        "the snapshotter for our handler": not choice.per_runtime
        or NAME in (runtime.get("snapshotter"), images.get("runtime_platforms", {}).get(NAME, {}).get("snapshotter")),
        "the snapshotter for the transfer service": containerd.replaces_sections
        or NAME in [item.get("snapshotter") for item in dump["plugins"].get(TRANSFER, {}).get("unpack_config", [])],
        "the snapshotter of the node": choice.per_runtime or images.get("snapshotter") == NAME,
    }
    missing = [name for name, holds in facts.items() if not holds]
    if missing:
        raise EnvironmentFault(
            "environment",
            f"containerd would not take {' and '.join(missing)} from the drop-in",
            "Another import of its configuration overrides it; put that file before the drop-in.",
        )


def _cri_of(dump: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The sections of CRI's runtimes and of its images, which are one up to 1.7."""
    plugins = dump.get("plugins", {})
    for name in (CRI[3], CRI[2], CRI[1]):
        if name in plugins:
            section = plugins[name]
            return section, plugins.get(IMAGES, {}) if name == CRI[3] else section.get("containerd", {})
    return {}, {}


def _runtimes_of(dump: Mapping[str, Any]) -> Mapping[str, Any]:
    found = _cri_of(dump)[0].get("containerd", {}).get("runtimes", {})
    return found if isinstance(found, Mapping) else {}


def _describe(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime without what is empty, which is what containerd assumes anyway."""
    full = {name: _describe(value) if isinstance(value, Mapping) else value for name, value in runtime.items()}
    return {name: value for name, value in full.items() if value not in ("", 0, False, [], {})}


def digest(containerd: Containerd, plugins: Mapping[str, Any]) -> str:
    """Of what a drop-in made now would repeat."""
    section = plugins.get(CRI[containerd.schema] if containerd.replaces_sections else TRANSFER, {})
    return hashlib.sha256(toml_text.encode(section).encode()).hexdigest()
