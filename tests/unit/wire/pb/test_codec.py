"""Our codec against google.protobuf: the same bytes out, the same values in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.pb import agent, codec, ttrpc

COMMON = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@record
class Leaf:
    text: str = codec.string(1)
    number: int = codec.int64(2)


@record
class Kinds:
    i32: int = codec.int32(1)
    i64: int = codec.int64(2)
    u32: int = codec.uint32(3)
    u64: int = codec.uint64(4)
    flag: bool = codec.boolean(5)
    real: float = codec.double(6)
    text: str = codec.string(7)
    raw: bytes = codec.bytestring(8)
    leaf: Leaf | None = codec.message(9, Leaf)
    i32s: tuple[int, ...] = codec.int32(11, repeated=True)
    u64s: tuple[int, ...] = codec.uint64(12, repeated=True)
    reals: tuple[float, ...] = codec.double(13, repeated=True)
    texts: tuple[str, ...] = codec.string(14, repeated=True)
    raws: tuple[bytes, ...] = codec.bytestring(15, repeated=True)
    leaves: tuple[Leaf, ...] = codec.message(16, Leaf, repeated=True)
    labels: dict[str, str] = codec.string_map(17)
    unpacked: tuple[int, ...] = codec.int64(18, repeated=True)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
i32, i64 = st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-(1 << 63), (1 << 63) - 1)
u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
reals = st.floats(allow_nan=False)
leaves = st.builds(Leaf, text=texts, number=i64)


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=4).map(tuple)


kinds = st.builds(
    Kinds,
    i32=i32,
    i64=i64,
    u32=u32,
    u64=u64,
    flag=st.booleans(),
    real=reals,
    text=texts,
    raw=st.binary(max_size=8),
    leaf=st.none() | leaves,
    i32s=several(i32),
    u64s=several(u64),
    reals=several(reals),
    texts=several(texts),
    raws=several(st.binary(max_size=8)),
    leaves=several(leaves),
    labels=st.dictionaries(texts, texts, max_size=1),  # runtimes differ in how they order entries
    unpacked=st.just(()),
)


def to_google(google: Any, package: str, value: Any) -> Any:
    out = google(f"{package}.{type(value).__name__}")()
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        described: codec.Field = field.metadata["pb"]
        if described.kind is codec.Kind.STRING_MAP:
            getattr(out, field.name).update(content)
        elif described.kind is codec.Kind.MESSAGE and described.repeated:
            getattr(out, field.name).extend(to_google(google, package, item) for item in content)
        elif described.kind is codec.Kind.MESSAGE:
            if content is not None:
                getattr(out, field.name).CopyFrom(to_google(google, package, content))
        elif described.repeated:
            getattr(out, field.name).extend(content)
        else:
            setattr(out, field.name, content)
    return out


def from_google(theirs: Any, cls: Any) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        content = getattr(theirs, field.name)
        described: codec.Field = field.metadata["pb"]
        if described.kind is codec.Kind.STRING_MAP:
            values[field.name] = {key: content[key] for key in sorted(content)}
        elif described.kind is codec.Kind.MESSAGE and described.repeated:
            values[field.name] = tuple(from_google(item, described.message) for item in content)
        elif described.kind is codec.Kind.MESSAGE:
            values[field.name] = from_google(content, described.message) if theirs.HasField(field.name) else None
        elif described.repeated:
            values[field.name] = tuple(content)
        else:
            values[field.name] = content
    return cls(**values)


@COMMON
@given(value=kinds)
def test_every_kind_has_googles_bytes_and_comes_back(google: Any, value: Kinds) -> None:
    theirs = to_google(google, "enclavecc.test.v1", value).SerializeToString(deterministic=True)
    assert codec.encode(value) == theirs
    assert codec.decode(Kinds, theirs) == value


@COMMON
@given(labels=st.dictionaries(texts, texts, max_size=5))
def test_maps_of_any_order_are_read_alike(google: Any, labels: dict[str, str]) -> None:
    theirs = to_google(google, "enclavecc.test.v1", Kinds(labels=labels))
    assert codec.decode(Kinds, theirs.SerializeToString()).labels == labels
    assert dict(google("enclavecc.test.v1.Kinds").FromString(codec.encode(Kinds(labels=labels))).labels) == labels


TTRPC = [
    st.builds(
        ttrpc.Request,
        service=texts,
        method=texts,
        payload=st.binary(max_size=20),
        timeout_nano=i64,
        metadata=several(st.builds(ttrpc.KeyValue, key=texts, value=texts)),
    ),
    st.builds(
        ttrpc.Response,
        status=st.none()
        | st.builds(
            ttrpc.Status,
            code=i32,
            message=texts,
            details=several(st.builds(ttrpc.Any, type_url=texts, value=st.binary(max_size=9))),
        ),
        payload=st.binary(max_size=20),
    ),
    st.builds(ttrpc.ErrorDetail, code=texts, what=texts, fix=texts),
]


@COMMON
@given(value=st.one_of(TTRPC))
def test_the_ttrpc_envelope_has_googles_bytes(google: Any, value: Any) -> None:
    theirs = to_google(google, "enclavecc.ttrpc.v1", value).SerializeToString(deterministic=True)
    assert codec.encode(value) == theirs
    assert codec.decode(type(value), theirs) == value


FILLED = [
    agent.GetStatusRequest(),
    agent.GetStatusResponse("0.1", "simulated", True, "ab", "cd", "https://k", True, (agent.ContainerStatus("c", "i", "pulled"),)),
    agent.PullImageRequest("c", "r/i:t"),
    agent.PullImageResponse("r/i:t", "sha256:00", 3, 2, 1 << 40),
    agent.GetPullProgressRequest("c"),
    agent.GetPullProgressResponse("pulling", (agent.LayerProgress("sha256:1", 5, 4, "download"),)),
    agent.CreateContainerRequest("c", "i", b"{}"),
    agent.CreateContainerResponse(),
    agent.RemoveContainerRequest("c"),
    agent.RemoveContainerResponse(),
    agent.ShutdownRequest(),
    agent.ShutdownResponse(),
    agent.HandoverRequest("c", b"\x00\xff"),
    agent.HandoverResponse(b"\x01"),
]


@pytest.mark.parametrize("value", FILLED, ids=lambda v: type(v).__name__)
def test_agent_messages_are_those_of_the_proto(google: Any, value: Any) -> None:
    theirs = to_google(google, "enclavecc.agent.v1", value)
    assert codec.encode(value) == theirs.SerializeToString(deterministic=True)
    assert codec.decode(type(value), theirs.SerializeToString()) == value
    assert {f.name for f in dataclasses.fields(value)} == {f.name for f in theirs.DESCRIPTOR.fields}


def test_the_proto_declares_no_message_that_the_module_lacks(google: Any) -> None:
    for package, module, some in (("agent", agent, "PullImageRequest"), ("ttrpc", ttrpc, "Request")):
        file = google(f"enclavecc.{package}.v1.{some}").DESCRIPTOR.file
        assert set(file.message_types_by_name) <= set(vars(module))
    services = google("enclavecc.agent.v1.PullImageRequest").DESCRIPTOR.file.services_by_name
    assert {s.full_name for s in services.values()} == {agent.AGENT_SERVICE, agent.HANDOVER_SERVICE}


@COMMON
@given(data=st.binary(max_size=64))
def test_what_we_accept_google_reads_alike(google: Any, data: bytes) -> None:
    try:
        ours = codec.decode(Kinds, data)
    except PeerError:
        return
    try:
        theirs = google("enclavecc.test.v1.Kinds").FromString(data)
    except Exception:
        return  # upb is stricter in one point: it refuses varints whose tenth byte overflows 64 bits
    assert repr(from_google(theirs, Kinds)) == repr(ours)  # repr: NaN equals itself there


@COMMON
@given(value=kinds, extra=st.binary(max_size=12), cut=st.integers(0, 400))
def test_damaged_messages_decode_or_raise_peer_error(value: Kinds, extra: bytes, cut: int) -> None:
    data = codec.encode(value)
    for damaged in (data[:cut] + extra + data[cut:], data[:cut], extra + data):
        try:
            codec.decode(Kinds, damaged)
        except PeerError as error:
            assert error.code == "malformed"


def test_fields_from_the_future_are_skipped() -> None:
    future = b"\xf8\x01\x05" + b"\xfa\x01\x02hi" + b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4)
    assert codec.decode(Leaf, future + codec.encode(Leaf("x", 7)) + future) == Leaf("x", 7)


def test_a_known_number_with_a_foreign_wire_type_is_skipped() -> None:
    assert codec.decode(Leaf, b"\x08\x05" + b"\x12\x01a") == Leaf()


def test_last_scalar_wins_and_messages_merge() -> None:
    assert codec.decode(Leaf, codec.encode(Leaf("a", 1)) + codec.encode(Leaf("b", 0))) == Leaf("b", 1)
    two = codec.encode(Kinds(leaf=Leaf("a", 0))) + codec.encode(Kinds(leaf=Leaf("", 9)))
    assert codec.decode(Kinds, two).leaf == Leaf("a", 9)


def test_packed_and_unpacked_scalars_are_read_alike() -> None:
    packed = b"\x92\x01\x03\x01\x02\x03"
    unpacked = b"\x90\x01\x01\x90\x01\x02\x90\x01\x03"
    assert codec.decode(Kinds, packed).unpacked == codec.decode(Kinds, unpacked).unpacked == (1, 2, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",  # field number 0
        b"\x0b",  # group
        b"\x0a\x05abc",  # cut short
        b"\x0a\x02\xff\xfe",  # not UTF-8
        b"\x10" + b"\x80" * 10 + b"\x01",  # varint of eleven bytes
        b"\x80\x80\x80\x80\x80\x01\x00",  # field number 2^29 and above
        b"\x10",
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        codec.decode(Leaf, data)
    assert caught.value.code == "malformed"


def test_limits_on_items_and_depth() -> None:
    with pytest.raises(PeerError):
        codec.decode(Kinds, b"\x72\x00" * (codec.MAX_ITEMS + 1))
    with pytest.raises(PeerError):
        codec.decode(Kinds, b"\x90\x01\x01" * (codec.MAX_ITEMS + 1))

    @record
    class Nest:
        pass

    # A class that holds itself can only be declared by hand.
    codec._plans[Nest] = ((), {1: ("inner", codec.Field(1, codec.Kind.MESSAGE, message=Nest))})
    data = b""
    for _ in range(codec.MAX_DEPTH + 2):
        size = bytearray()
        codec._put_varint(size, len(data))
        data = b"\x0a" + bytes(size) + data
    with pytest.raises(PeerError, match="nested"):
        codec.decode(Nest, data)


@pytest.mark.parametrize("value", [Kinds(i32=1 << 31), Kinds(u64=-1), Kinds(u32=1 << 32), Leaf("\ud800")])
def test_values_outside_their_kind_are_our_bug(value: object) -> None:
    with pytest.raises(ValueError):
        codec.encode(value)


def test_a_number_used_twice_is_our_bug() -> None:
    @record
    class Twice:
        a: int = codec.int32(1)
        b: int = codec.int32(1)

    with pytest.raises(TypeError):
        codec.encode(Twice())
