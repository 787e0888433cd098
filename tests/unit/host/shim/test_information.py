"""`-info`: what the shim says of itself."""

from __future__ import annotations

import json
import subprocess
import sys

from enclave_cc import __version__
from enclave_cc.wire.pb import codec, runtime_info


def test_it_needs_no_pod() -> None:
    command = [sys.executable, "-m", "enclave_cc.host.shim", "-info"]
    done = subprocess.run(command, input=b"\x0a\x07options", capture_output=True, check=True)
    told = codec.decode(runtime_info.RuntimeInfo, done.stdout)
    assert told.name == "io.containerd.rune.v2"
    assert told.version == runtime_info.RuntimeVersion(__version__)
    assert told.features is not None
    assert told.features.type_url == runtime_info.FEATURES_URL
    features = json.loads(told.features.value)
    assert features["linux"]["mountExtensions"]["idmap"]["enabled"] is False
    assert "rro" not in features["mountOptions"]
