"""The protobuf codec takes any bytes for every message of ours, and encodes what it took."""

from __future__ import annotations

import dataclasses

from enclave_cc.errors import PeerError
from enclave_cc.wire.pb import agent, codec, ttrpc

_MESSAGES = [item for module in (agent, ttrpc) for item in vars(module).values() if dataclasses.is_dataclass(item)]
SEEDS = [
    codec.encode(ttrpc.Request("s", "m", b"p", -1, (ttrpc.KeyValue("a", "b"),))),
    codec.encode(ttrpc.Response(ttrpc.Status(1, "x", (ttrpc.Any("u", b"v"),)), b"p")),
    codec.encode(agent.GetStatusResponse("1", "t", True, containers=(agent.ContainerStatus("a", "b", "c"),))),
    codec.encode(agent.GetPullProgressResponse("s", (agent.LayerProgress("d", 1 << 63, 2, "x"),))),
]


def target(data: bytes) -> None:
    for message in _MESSAGES:
        assert isinstance(message, type)
        try:
            decoded = codec.decode(message, data)
        except PeerError:
            continue
        assert codec.decode(message, codec.encode(decoded)) == decoded
