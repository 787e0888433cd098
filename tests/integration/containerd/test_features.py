"""What the shim says of itself, to those containerds that ask (2.x)."""

from __future__ import annotations

import json

import cri as clients
import daemon
import pytest
from cri_messages import RuntimeHandlerFeatures
from kubelet import OURS, RUNC

from enclave_cc import __version__

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def asks(node: daemon.Node) -> None:
    if node.version < (2, 0):
        pytest.skip("containerd before 2.0 asks no runtime for its features")


def test_ctr_shows_them(node: daemon.Node) -> None:
    told = json.loads(node.ctr("plugins", "inspect-runtime", "--runtime", "io.containerd.rune.v2").stdout)
    assert (told["Name"], told["Version"]["Version"]) == ("io.containerd.rune.v2", __version__)
    features = told["Features"]
    assert features["linux"]["seccomp"]["enabled"] is True
    assert "user" not in features["linux"]["namespaces"]
    assert features["potentiallyUnsafeConfigAnnotations"] == ["enclave-cc.image"]


def test_cri_draws_its_conclusions(cri: clients.Cri) -> None:
    """The kubelet sees here that pods which ask for either are not for our handler. (2.1 asks runc's shim alone.)"""
    handlers = {handler.name: handler.features or RuntimeHandlerFeatures() for handler in cri.status().runtime_handlers}
    assert handlers[RUNC].recursive_read_only_mounts
    assert (handlers[OURS].recursive_read_only_mounts, handlers[OURS].user_namespaces) == (False, False)
