"""The messages of runtime_info.proto: what a shim says of itself to containerd 2."""

from __future__ import annotations

from enclave_cc.record import record
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb.ttrpc import Any

FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"  # JSON inside


@record
class RuntimeVersion:
    version: str = codec.string(1)
    revision: str = codec.string(2)


@record
class RuntimeInfo:
    name: str = codec.string(1)
    version: RuntimeVersion | None = codec.message(2, RuntimeVersion)
    features: Any | None = codec.message(4, Any)
