"""Our classes of containerd's messages against google.protobuf's, made of the .proto beside them: field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from enclave_cc.wire.pb import cgroup_metrics, codec, runtime_info, shim_events, task


def classes(module: Any, package: str) -> list[Any]:
    found = [value for value in vars(module).values() if isinstance(value, type) and dataclasses.is_dataclass(value)]
    return [pytest.param(cls, f"{package}.{cls.__name__}", id=cls.__name__) for cls in found if cls.__module__ == module.__name__]


ALL = (
    classes(task, "containerd.task.v3")
    + classes(shim_events, "containerd.events")
    + classes(cgroup_metrics, "io.containerd.cgroups")
    + classes(runtime_info, "containerd.types")
)


def make(cls: type, depth: int = 0) -> Any:
    """A value with every field set, each to something of its own."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        declared: codec.Field = field.metadata["pb"]
        kinds = {codec.Kind.STRING: f"s{declared.number}", codec.Kind.BYTES: b"b%d" % declared.number, codec.Kind.BOOL: True}
        if declared.kind is codec.Kind.MESSAGE:
            assert declared.message is not None
            value: Any = make(declared.message, depth + 1)
        elif declared.kind is codec.Kind.STRING_MAP:
            value = {"key": "value"}
        else:
            value = kinds.get(declared.kind, declared.number)
        values[field.name] = (value, value) if declared.repeated else value
    return cls(**values)


@pytest.mark.parametrize(("cls", "name"), ALL)
def test_every_field_is_as_the_schema_says(google: Callable[[str], Any], cls: type, name: str) -> None:
    ours = make(cls)
    theirs = google(name)()
    theirs.ParseFromString(codec.encode(ours))
    assert {field.name for field, _ in theirs.ListFields()} == {field.name for field in dataclasses.fields(cls)}
    assert theirs.SerializeToString(deterministic=True) == codec.encode(ours)
    assert codec.decode(cls, theirs.SerializeToString()) == ours


def test_an_event_in_its_envelope(google: Callable[[str], Any]) -> None:
    event = shim_events.TaskStart("c1", 17)
    request = google("containerd.events.ForwardRequest")()
    request.ParseFromString(shim_events.wrap(event, "k8s.io", 1_700_000_000_000_000_001))
    assert (request.envelope.namespace, request.envelope.topic) == ("k8s.io", "/tasks/start")
    assert (request.envelope.timestamp.seconds, request.envelope.timestamp.nanos) == (1_700_000_000, 1)
    assert request.envelope.event.type_url == "containerd.events.TaskStart"
    inner = google("containerd.events.TaskStart")()
    inner.ParseFromString(request.envelope.event.value)
    assert (inner.container_id, inner.pid) == ("c1", 17)
