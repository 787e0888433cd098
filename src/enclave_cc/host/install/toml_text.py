"""TOML as text: writing tables, and adding one import to a file that somebody else wrote, changing nothing else of it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

from enclave_cc.errors import UsageError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def encode(document: Mapping[str, Any]) -> str:
    """What tomllib reads back as `document`. Raises TypeError for values that TOML has not."""
    lines: list[str] = []
    _put_table(lines, (), document)
    return "\n".join(lines).strip("\n") + "\n"


def _put_table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    plain = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    if path and (plain or not inner):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    for name, value in plain.items():
        lines.append(f"{_key(name)} = {_value(value)}")
    for name, value in inner.items():
        _put_table(lines, (*path, name), value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but that TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(name))} = {_value(item)}" for name, item in value.items()) + "}"
    raise TypeError(f"TOML has no {type(value).__name__}")


_IMPORTS = re.compile(r"^imports[ \t]*=[ \t]*\[", re.MULTILINE)
_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def add_import(text: str, path: str) -> tuple[str, str]:
    """`text` with `path` as the last of its imports (last, because the last one wins), and the piece that was inserted.

    Raises `UsageError("bad-config")` when that cannot be done by inserting one piece of text.
    """
    before = tomllib.loads(text)
    found = _IMPORTS.search(text)
    table = _TABLE.search(text)
    if "imports" not in before:
        piece = f"imports = [{_string(path)}]\n"
        changed = piece + text
    else:
        if found is None or (table is not None and table.start() < found.start()):
            raise _refusal("its imports are written in a way that this program does not change")
        end = _find_end(text, found.end())
        inside = text[found.end() : end]
        separator = "" if not before["imports"] or inside.rstrip().endswith(",") else ", "
        at = found.end() + len(inside.rstrip())
        piece = f"{separator}{_string(path)}"
        changed = text[:at] + piece + text[at:]
    expected = {**before, "imports": [*before.get("imports", []), path]}
    try:
        good = tomllib.loads(changed) == expected and changed.count(piece) == 1
    except tomllib.TOMLDecodeError:
        good = False
    if not good:
        raise _refusal("its imports are written in a way that this program does not change")
    return changed, piece


def _find_end(text: str, start: int) -> int:
    """Where the array that opens before `start` closes: the first `]` that makes TOML of what lies between."""
    at = start
    while (at := text.find("]", at)) >= 0:
        try:
            tomllib.loads(f"imports = [{text[start:at]}]")
        except tomllib.TOMLDecodeError:
            at += 1
        else:
            return at
    raise _refusal("its imports do not end")


def _refusal(what: str) -> UsageError:
    return UsageError(
        "bad-config", f"containerd's configuration: {what}", "Add the file to the imports by hand, then run this again."
    )
