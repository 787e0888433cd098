"""Google's own runtime, loaded with our .proto sources, as the judge of our codec."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KINDS_PROTO = """
syntax = "proto3";
package enclavecc.test.v1;
message Leaf { string text = 1; int64 number = 2; }
message Kinds {
  int32 i32 = 1; int64 i64 = 2; uint32 u32 = 3; uint64 u64 = 4; bool flag = 5; double real = 6;
  string text = 7; bytes raw = 8; Leaf leaf = 9;
  repeated int32 i32s = 11; repeated uint64 u64s = 12; repeated double reals = 13;
  repeated string texts = 14; repeated bytes raws = 15; repeated Leaf leaves = 16;
  map<string, string> labels = 17;
  repeated int64 unpacked = 18 [packed = false];
}
"""


@pytest.fixture(scope="session")
def google(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`google("package.Message")` is the class that google.protobuf makes of our source."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc

    work = tmp_path_factory.mktemp("proto")
    (work / "kinds.proto").write_text(KINDS_PROTO)
    sources = importlib.resources.files("enclave_cc.wire.pb")
    with importlib.resources.as_file(sources) as folder:
        files = [*sorted(str(p) for p in Path(folder).glob("*.proto")), str(work / "kinds.proto")]
        out = work / "set.bin"
        assert protoc.main(["protoc", f"-I{folder}", f"-I{work}", f"--descriptor_set_out={out}", *files]) == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
