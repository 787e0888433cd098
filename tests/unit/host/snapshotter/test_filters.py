"""containerd's filter language."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.errors import UsageError
from enclave_cc.host.snapshotter import filters
from enclave_cc.host.snapshotter.filters import Subject
from enclave_cc.wire.pb.snapshots import Kind

SUBJECT = Subject("k8s.io/7/c1", "k8s.io/3/base", Kind.ACTIVE, {"containerd.io/snapshot.ref": "sha256:ab", "l": "2", "a.b": "x y"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("name", True),
        ("nothing", False),
        ("kind==active", True),
        ("kind == active , labels.l==2", True),
        ("kind==view", False),
        ('labels."containerd.io/snapshot.ref"==sha256:ab,parent=="k8s.io/3/base"', True),
        ('labels."containerd.io/snapshot.ref"==sha256:ac', False),
        ("labels.a.b", True),
        ('labels.a.b=="x y"', True),
        (r'labels.a.b=="x\x20\171"', True),
        (r'labels.a.b=="\u0078\U00000020y"', True),
        ("labels.missing", False),
        ("labels.missing!=x", True),
        ("labels.l!=2", False),
        ("name~=/c[0-9]$/", True),
        ("name~=|io/7|", True),
        (r"name~=/io\/7/", True),
        ('name~="^c1$"', False),
        ("labels", False),
    ],
)
def test_matches(text: str, expected: bool) -> None:
    assert filters.parse(text)(SUBJECT) is expected


def test_any_of_several() -> None:
    assert filters.parse_all(["kind==view", "kind==active"])(SUBJECT)
    assert not filters.parse_all(["kind==view", "labels.l==3"])(SUBJECT)
    assert filters.parse_all([])(SUBJECT)


@pytest.mark.parametrize(
    "text",
    ["kind=active", "kind==", "==x", "a,", ",a", "a.", 'a=="x', 'a=="\\q"', "a~=/(/", "a b", "a==/x y/", "x" * 70_000, "a.'b'"],
)
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError) as error:
        filters.parse_all(["name", text])
    assert error.value.code == "usage"


@given(st.text(max_size=40) | st.text(alphabet='abl."=!~,/|\\ x07', max_size=30))
@settings(max_examples=200)
def test_whatever_comes_is_a_filter_or_refused(text: str) -> None:
    try:
        matches = filters.parse(text)
    except UsageError:
        return
    assert matches(SUBJECT) in (True, False)


@given(st.text(max_size=30))
@settings(max_examples=100)
def test_quoted_values_are_taken_literally(value: str) -> None:
    import json

    quoted = json.dumps(value, ensure_ascii=False).replace("\\/", "/")
    subject = Subject("n", "", Kind.VIEW, {"k": value})
    assert filters.parse(f"labels.k=={quoted}")(subject)
