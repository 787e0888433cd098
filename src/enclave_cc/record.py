"""Immutable value types, declared like dataclasses, without what those cost when a program starts.

`@record` stands for `@dataclass(frozen=True, slots=True)`: slots, `__init__` with defaults, `__post_init__`, `==`, hash,
repr, `__match_args__`. The standard library writes and compiles six functions for each class when the class is made,
half a millisecond, whether or not the program ever uses it; the agent alone has a hundred. Here `__init__` is compiled
when the first instance is made, and all else is shared. Type checkers read it as a dataclass (PEP 681), and
`dataclasses.fields`, `replace` and `is_dataclass` take records too.

Left out, as nothing needs it: mutable records, ordering, pickling, `ClassVar` and `InitVar` members, fields that are not
compared or shown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, dataclass_transform, overload

__all__ = ("MISSING", "Field", "field", "fields", "record", "replace")

C = TypeVar("C", bound=type)


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
_NOTHING: Mapping[str, Any] = {}


class Field:
    """One member of a record. `default` and `factory` are `MISSING` where there is none."""

    __slots__ = ("default", "factory", "metadata", "name")

    def __init__(self, default: Any, factory: Any, metadata: Mapping[str, Any]) -> None:
        self.name = ""
        self.default, self.factory, self.metadata = default, factory, metadata


def field(*, default: Any = MISSING, default_factory: Any = MISSING, metadata: Mapping[str, Any] = _NOTHING) -> Any:
    """A member whose default is made anew for each instance, or that says more of itself."""
    return Field(default, default_factory, metadata)


if TYPE_CHECKING:
    from dataclasses import replace  # the checker knows the members of that one
else:

    def replace(value, /, **changes):
        """A copy of a record with some members changed, validated like any other."""
        for member in fields(value):
            if member.name not in changes:
                changes[member.name] = getattr(value, member.name)
        return value.__class__(**changes)


def fields(value: object) -> tuple[Field, ...]:
    """The members of a record or record class, in order."""
    members: tuple[Field, ...] = value.__record_fields__  # type: ignore[attr-defined]
    return members


@overload
def record(cls: C, /) -> C: ...
@overload
def record(*, kw_only: bool = False) -> Callable[[C], C]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: Any = None, /, *, kw_only: bool = False) -> Any:
    """Class decorator. `kw_only`: `__init__` takes no positional arguments."""
    if cls is None:
        return lambda decorated: _make(decorated, kw_only=kw_only)
    return _make(cls, kw_only=kw_only)


def compile_all() -> None:
    """Compiles what waits for the first instance of each record that there is: for a process that will be forked."""
    for cls, kw_only in list(_deferred.items()):
        _install_init(cls, kw_only=kw_only)


_deferred: dict[type, bool] = {}  # records whose `__init__` is not compiled, and whether they are kw_only


def _make(cls: type, *, kw_only: bool) -> type:
    """The class once more, since slots are laid out when a class is made."""
    body = dict(cls.__dict__)
    own = tuple(body.get("__annotations__", ()))
    members: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        members |= {member.name: member for member in base.__dict__.get("__record_fields__", ())}
    for name in own:
        declared = body.pop(name, MISSING)
        member = declared if type(declared) is Field else Field(declared, MISSING, _NOTHING)
        if member.default.__class__.__hash__ is None:
            raise TypeError(f"{cls.__qualname__}.{name}: a mutable default is shared by all; use default_factory")
        member.name = name
        members[name] = member
    names = tuple(members)
    body.pop("__dict__", None)
    body.pop("__weakref__", None)
    body["__slots__"] = own
    body["__record_fields__"] = tuple(members.values())
    body["__record_values__"] = operator.attrgetter(*names) if names else staticmethod(_get_nothing)
    body["__dataclass_fields__"] = _DATACLASS_FIELDS
    body["__setattr__"], body["__delattr__"] = _refuse_setting, _refuse_deleting
    body.setdefault("__match_args__", () if kw_only else names)
    body.setdefault("__repr__", _repr)
    body.setdefault("__eq__", _eq)
    if body.get("__hash__") is None:  # a class that defines `__eq__` alone has None
        body["__hash__"] = _hash
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    if "__init__" not in body:
        made.__init__ = _defer_init(made, kw_only=kw_only)  # type: ignore[misc]
    return made


def _defer_init(cls: type, *, kw_only: bool) -> Callable[..., None]:
    def init(self: object, *arguments: Any, **members: Any) -> None:
        _install_init(cls, kw_only=kw_only)(self, *arguments, **members)

    _deferred[cls] = kw_only
    return init


def _install_init(cls: type, *, kw_only: bool) -> Callable[..., None]:
    compiled = _compile_init(cls, kw_only=kw_only)
    cls.__init__ = compiled  # type: ignore[misc]  # two threads may both do it: the results are alike
    _deferred.pop(cls, None)
    return compiled


def _compile_init(cls: type, *, kw_only: bool) -> Callable[..., None]:
    # Only names of our own sources go into the code; defaults and slots are passed beside it.
    scope: dict[str, Any] = {"_MISSING": MISSING}
    parameters, lines = ["self", "*"] if kw_only and fields(cls) else ["self"], []
    for member in fields(cls):
        name = member.name
        scope[f"_set_{name}"] = getattr(cls, name).__set__
        if member.factory is not MISSING:
            scope[f"_make_{name}"] = member.factory
            parameters.append(f"{name}=_MISSING")
            lines.append(f"_set_{name}(self, _make_{name}() if {name} is _MISSING else {name})")
        else:
            if member.default is not MISSING:
                scope[f"_default_{name}"] = member.default
            parameters.append(name if member.default is MISSING else f"{name}=_default_{name}")
            lines.append(f"_set_{name}(self, {name})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    source = f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines or ["pass"])
    exec(source, scope)  # noqa: S102 - as dataclasses do
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    return made


def _get_nothing(_: object) -> tuple[()]:
    return ()


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self.__record_values__(self) == other.__record_values__(other)


def _hash(self: Any) -> int:
    return hash(self.__record_values__(self))


def _repr(self: Any) -> str:
    members = ", ".join(f"{member.name}={getattr(self, member.name)!r}" for member in fields(self))
    return f"{self.__class__.__qualname__}({members})"


def _refuse_setting(self: object, name: str, _: object) -> NoReturn:
    raise AttributeError(f"{self.__class__.__qualname__} is immutable: {name!r} cannot be set")


def _refuse_deleting(self: object, name: str) -> NoReturn:
    raise AttributeError(f"{self.__class__.__qualname__} is immutable: {name!r} cannot be deleted")


class _DataclassFields:
    """What the functions of `dataclasses` look for; made when they do."""

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        import dataclasses

        described = []
        for member in fields(owner):
            factory = {} if member.factory is MISSING else {"default_factory": member.factory}
            default = {} if member.default is MISSING else {"default": member.default}
            declared: Any = dataclasses.field(metadata=member.metadata, kw_only=True, **factory, **default)
            described.append((member.name, Any, declared))
        made: Any = dataclasses.make_dataclass(owner.__name__, described)
        known: dict[str, Any] = made.__dataclass_fields__
        return known


_DATACLASS_FIELDS = _DataclassFields()
