"""Launch statement, overrides, launch policy and init-data take any bytes; what parses comes back from its own form."""

from __future__ import annotations

import contextlib
import hashlib

from enclave_cc.enclave.agent import init_data
from enclave_cc.errors import PeerError
from enclave_cc.wire.launch.limits import Rlimit
from enclave_cc.wire.launch.mounts import Tmpfs, Volume
from enclave_cc.wire.launch.overrides import Overrides
from enclave_cc.wire.launch.policy import LaunchPolicy
from enclave_cc.wire.launch.statement import LaunchStatement

SEEDS = [
    LaunchStatement(
        image="r/i:1",
        manifest_digest="sha256:" + "a" * 64,
        container_id="c",
        args=("/a",),
        volumes=(Volume("v", "/d"),),
        tmpfs=(Tmpfs("/t", 1, 0o700, False),),
        masked=("/proc/x",),
        rlimits=(Rlimit("RLIMIT_NOFILE", 1, 2),),
    ).encode(),
    Overrides(args=("a",), env=("A=b",), volumes=(Volume("v", "/d", True),), hostname="h", sealed=("/sys/x",)).encode(),
    LaunchPolicy().with_image("r/i", ["env:A", "volumes:/d", "exec"]).encode(),
    b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    b"\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"https://k\"\ncert = \"c\"\n'''\n"
    b'"cdh.toml" = "[image]\\nregistry_config = \'[[registry]]\\\\nlocation = 1\'"\n',
]


def target(data: bytes) -> None:
    for cls in (LaunchStatement, Overrides, LaunchPolicy):
        try:
            parsed = cls.parse(data)
        except PeerError:
            continue
        assert cls.parse(parsed.encode()) == parsed
    with contextlib.suppress(PeerError):
        init_data.verify(data, hashlib.sha256(data).digest() + bytes(32))
