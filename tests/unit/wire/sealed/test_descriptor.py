"""Descriptors: what they accept, what they refuse, what they hide."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.wire.sealed.block import MAX_PLAIN_SIZE, Role
from enclave_cc.wire.sealed.descriptor import BlobDescriptor
from enclave_cc.wire.sealed.rootfs import RootfsDescriptor

KEY = bytes(range(32))


def make(role: Role = Role.LAYER, fill: int = 1) -> BlobDescriptor:
    return BlobDescriptor(bytes([fill]) * 16, Secret(KEY), role, 131072, 5)


def test_json_there_and_back() -> None:
    text = json.dumps(make().to_json())
    assert BlobDescriptor.from_json(json.loads(text)) == make()
    assert json.loads(text) == {
        "id": "01" * 16, "key": KEY.hex(), "role": "layer", "block_size": 131072, "plain_size": 5,
    }  # fmt: skip


def test_the_key_does_not_show() -> None:
    assert KEY.hex() not in repr(make()) and repr(KEY) not in repr(make())


@pytest.mark.parametrize(
    "change",
    [
        {"id": "01" * 15}, {"id": "AB" * 16}, {"id": 5}, {"id": None}, {"id": "0x" + "01" * 15},
        {"key": "01" * 31}, {"key": ""}, {"key": []},
        {"role": "LAYER"}, {"role": 1}, {"role": None}, {"role": []}, {"role": {}},
        {"block_size": 0}, {"block_size": 4095}, {"block_size": 2048}, {"block_size": 12288}, {"block_size": 1 << 21},
        {"block_size": "131072"}, {"block_size": 131072.0}, {"block_size": True},
        {"plain_size": -1}, {"plain_size": MAX_PLAIN_SIZE + 1}, {"plain_size": None}, {"plain_size": False},
        {"more": 1},
    ],
)  # fmt: skip
def test_what_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        BlobDescriptor.from_json({**make().to_json(), **change})
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("member", ["id", "key", "role", "block_size", "plain_size"])
def test_no_member_may_lack(member: str) -> None:
    with pytest.raises(PeerError):
        BlobDescriptor.from_json({k: v for k, v in make().to_json().items() if k != member})


def test_a_rootfs_there_and_back() -> None:
    rootfs = RootfsDescriptor(make(Role.METADATA), (make(), make(), make(Role.SPILL, 3)))
    assert RootfsDescriptor.from_json(json.loads(json.dumps(rootfs.to_json()))) == rootfs
    assert [name for name, _ in rootfs.named_blobs] == ["meta", "0", "1", "2"]
    assert RootfsDescriptor.from_json(RootfsDescriptor(make(Role.METADATA), ()).to_json()).layers == ()


@pytest.mark.parametrize(
    ("metadata", "layers"),
    [
        (Role.LAYER, [Role.LAYER]),
        (Role.SPILL, []),
        (Role.METADATA, [Role.METADATA]),
        (Role.METADATA, [Role.SPILL, Role.LAYER]),
        (Role.METADATA, [Role.LAYER, Role.SPILL, Role.SPILL]),
    ],
)
def test_a_rootfs_with_wrong_roles(metadata: Role, layers: list[Role]) -> None:
    with pytest.raises(PeerError):
        RootfsDescriptor(make(metadata), tuple(make(role) for role in layers))


@pytest.mark.parametrize("value", [None, [], {}, {"version": 1}, {"version": 2, "metadata": {}, "layers": []}])
def test_no_rootfs(value: object) -> None:
    with pytest.raises(PeerError):
        RootfsDescriptor.from_json(value)


def test_a_rootfs_with_too_many_layers() -> None:
    value = RootfsDescriptor(make(Role.METADATA), ()).to_json()
    with pytest.raises(PeerError):
        RootfsDescriptor.from_json({**value, "layers": [make().to_json()] * 1025})
