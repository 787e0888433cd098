"""The pod's network: the node's own, none, or a bridge made by the CNI plugins of Debian (CNI 1.0.0).

The plugins run with CNI_NETNS naming the namespace that the pause container made. A mount holds it beyond that container:
DEL gives the address back in any case, but removes its iptables rules only when it can look into the namespace.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enclave_cc.errors import EnvironmentFault, foreign
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.runc import Stdio, run_program

INTERFACE = "eth0"
_NAME = "enclave-cc"
_ANSWER_LIMIT = 1 << 20
_MS_BIND = 4096


def hold(namespace: str, place: Path) -> None:
    """Binds a network namespace to the file `place`; it lives until that is unmounted. Raises `EnvironmentFault`."""
    place.touch(mode=0o600)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(namespace), bytes(place), None, ctypes.c_ulong(_MS_BIND), None) != 0:
        raise EnvironmentFault("environment", f"holding the network namespace: {os.strerror(ctypes.get_errno())}")


def attach(configuration: Configuration, container: str, netns: str) -> list[str]:
    """Adds `eth0` to the namespace; its addresses with prefix length. Raises `EnvironmentFault`."""
    import ipaddress

    answer = _call_plugin(configuration, "ADD", container, netns)
    try:
        return [str(ipaddress.ip_interface(entry["address"])) for entry in answer["ips"]]
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFault("environment", "the CNI bridge plugin gave no address") from error


def detach(configuration: Configuration, container: str, netns: str) -> None:
    """Gives the address back and removes the interface. What is gone already is no error. Raises `EnvironmentFault`."""
    _call_plugin(configuration, "DEL", container, netns if os.path.ismount(netns) else "")


def make_configuration(configuration: Configuration) -> dict[str, Any]:
    """The CNI network configuration; leases lie in the run directory, which a reboot empties as it ends all pods."""
    network = configuration.network
    return {
        "cniVersion": "1.0.0",
        "name": _NAME,
        "type": "bridge",
        "bridge": network.bridge,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(configuration.run / "cni"),
            "ranges": [[{"subnet": network.subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }


def _call_plugin(configuration: Configuration, verb: str, container: str, netns: str) -> Mapping[str, Any]:
    plugin = configuration.network.cni_path / "bridge"
    if not plugin.exists():
        raise EnvironmentFault("missing-tool", f"{plugin} is missing", "apt-get install containernetworking-plugins")
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": str(configuration.network.cni_path),
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    }
    request = os.memfd_create("cni-request", os.MFD_CLOEXEC)
    answer = os.memfd_create("cni-answer", os.MFD_CLOEXEC)
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(request, json.dumps(make_configuration(configuration)).encode())
        os.lseek(request, 0, os.SEEK_SET)
        status = run_program([str(plugin)], Stdio(request, answer, null), environment, deadline=configuration.deadlines.network)
        os.lseek(answer, 0, os.SEEK_SET)
        text = os.read(answer, _ANSWER_LIMIT)
    finally:
        for descriptor in (request, answer, null):
            os.close(descriptor)
    try:
        document = json.loads(text) if text.strip() else {}
    except ValueError:
        document = {}
    if status != 0:
        reason = document.get("msg", text) if isinstance(document, dict) else text
        details = document.get("details", "") if isinstance(document, dict) else ""
        raise EnvironmentFault("environment", f"CNI bridge {verb}: {foreign(reason)} {foreign(details)}".rstrip())
    return document if isinstance(document, dict) else {}
