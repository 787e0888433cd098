"""Records against the standard library's dataclasses."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from enclave_cc.record import field, fields, record, replace


@dataclasses.dataclass(frozen=True, slots=True)
class TheirPoint:
    x: int
    y: int = 2
    tags: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x")


@record
class Point:
    """A point."""

    x: int
    y: int = 2
    tags: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x")


@record
class Pair:
    left: int
    right: str = "r"


@record(kw_only=True)
class Named:
    first: int = 1
    second: str


@record
class Empty:
    pass


def both(*arguments: Any, **members: Any) -> tuple[object, object]:
    """What making a point gives: its members' values, or the type of the error."""
    results: list[object] = []
    for cls in (Point, TheirPoint):
        try:
            made = cls(*arguments, **members)
        except (TypeError, ValueError) as error:
            results.append(type(error))
        else:
            results.append((made.x, made.y, made.tags, repr(made).partition("(")[2]))
    return results[0], results[1]


@pytest.mark.parametrize(
    ("arguments", "members"),
    [
        ((1,), {}),
        ((1, 3), {}),
        ((1, 3, {"a": 1}), {}),
        ((), {"x": 1}),
        ((1,), {"tags": {}}),
        ((), {}),
        ((1, 2, {}, 4), {}),
        ((1,), {"x": 2}),
        ((1,), {"z": 2}),
        ((-1,), {}),
    ],
)
def test_they_are_made_as_dataclasses_are(arguments: tuple[Any, ...], members: dict[str, Any]) -> None:
    ours, theirs = both(*arguments, **members)
    assert ours == theirs
    ours, theirs = both(*arguments, **members)  # the first compiled `__init__`
    assert ours == theirs


def test_a_failed_first_instance_does_not_spoil_the_class() -> None:
    @record
    class Fresh:
        value: int

    with pytest.raises(TypeError):
        Fresh()  # type: ignore[call-arg]
    assert Fresh(3).value == 3


def test_a_default_is_made_for_each() -> None:
    first, second = Point(1), Point(1)
    assert first.tags == {}
    assert first.tags is not second.tags


def test_equal_values_are_equal_and_hash_alike() -> None:
    assert Pair(1) == Pair(1, "r")
    assert hash(Pair(1)) == hash(Pair(1, "r"))
    assert Pair(1) != Pair(2)
    assert Pair(1) != (1, "r")
    assert len({Pair(1), Pair(1), Pair(2), Empty(), Empty()}) == 3
    assert Empty() == Empty()
    assert repr(Empty()) == "Empty()"
    with pytest.raises(TypeError):
        hash(Point(1))  # a member is a dict


def test_another_class_with_equal_members_is_not_equal() -> None:
    @record
    class Other:
        left: int
        right: str = "r"

    assert Pair(1) != Other(1)


def test_nothing_of_it_changes() -> None:
    pair: Any = Pair(1)
    with pytest.raises(AttributeError, match="immutable"):
        pair.left = 2
    with pytest.raises(AttributeError, match="immutable"):
        pair.other = 2
    with pytest.raises(AttributeError, match="immutable"):
        del pair.left
    assert not hasattr(pair, "__dict__")
    assert pair.left == 1


def test_keyword_only() -> None:
    assert Named(second="b").first == 1
    positional: Any = Named
    with pytest.raises(TypeError):
        positional(1, "b")


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="default_factory"):

        @record
        class Broken:
            items: list[int] = []  # noqa: RUF012


def test_members_of_a_base_come_first() -> None:
    @record
    class Third(Pair):
        more: int = 0

    assert [member.name for member in fields(Third)] == ["left", "right", "more"]
    assert repr(Third(1, more=4)).endswith("Third(left=1, right='r', more=4)")
    assert Third(1) != Pair(1)
    assert not hasattr(Third(1), "__dict__")


def test_what_a_class_defines_itself_stays() -> None:
    @record
    class Own:
        secret: int

        def __repr__(self) -> str:
            return "Own(...)"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 7

    assert repr(Own(1)) == "Own(...)"
    assert Own(1) == Own(2)
    assert hash(Own(1)) == 7


def test_replace_validates_the_copy() -> None:
    assert replace(Point(1, 3), x=5) == Point(5, 3)
    with pytest.raises(ValueError, match="x"):
        replace(Point(1), x=-1)
    with pytest.raises(TypeError):
        replace(Point(1), **{"z": 1})


def test_patterns_match_by_position() -> None:
    match Pair(4, "s"):
        case Pair(left, "s"):
            assert left == 4
        case _:
            pytest.fail("no match")


def test_the_library_of_dataclasses_takes_them() -> None:
    assert [f.name for f in dataclasses.fields(Point(1))] == ["x", "y", "tags"]
    assert dataclasses.replace(Point(1), y=9).y == 9
    assert dataclasses.asdict(Point(1, 2, {"a": 3})) == {"x": 1, "y": 2, "tags": {"a": 3}}
    cls: Any = Point
    assert dataclasses.is_dataclass(cls)


def test_many_threads_make_the_first_instance() -> None:
    @record
    class Raced:
        a: int
        b: int = 1

    made: list[Any] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        made.append(Raced(1))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [Raced(1)] * 8
