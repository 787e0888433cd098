"""`-info`: what containerd 2 is told of this runtime, for its users (`ctr plugins inspect-runtime`) and for CRI.

It leaves out user namespaces and recursive read-only mounts, which enclaves' containers cannot have: so does CRI then, and
refuses pods that ask for them. (CRI of 2.1 asks runc's shim alone, and takes every other to have neither.)
Source: OCI runtime-spec, features.md; containerd, core/runtime/v2/README.md, "Info".
"""

from __future__ import annotations

import json

from enclave_cc import __version__
from enclave_cc.host.shim import seccomp, workload
from enclave_cc.wire.pb import codec, runtime_info
from enclave_cc.wire.pb.ttrpc import Any

NAME = "io.containerd.rune.v2"


def describe() -> bytes:
    """A RuntimeInfo message."""
    features = runtime_info.FEATURES_URL, json.dumps(list_features(), separators=(",", ":")).encode()
    return codec.encode(runtime_info.RuntimeInfo(NAME, runtime_info.RuntimeVersion(__version__), Any(*features)))


def list_features() -> dict[str, object]:
    """Of what runtime-spec asks about, what holds for an enclave's container."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.1.0",
        "hooks": [],
        "mountOptions": ["bind", "rbind", "ro", "rw"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp.ARCHITECTURES),
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "potentiallyUnsafeConfigAnnotations": [workload.OWN_IMAGE],
    }
