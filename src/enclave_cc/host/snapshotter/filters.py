"""containerd's filter language for snapshots.

    filter    := selector ("," selector)*                 all must match
    selector  := field ("." field)* [("==" | "!=" | "~=") value]
    field     := quoted | [A-Za-z0-9_]+
    value     := quoted | anything but white space and ","

A selector without an operator asks whether the field is there. Fields: name, parent, kind (view, active, committed),
labels.KEY. Strings are quoted as in Go; behind `~=`, a regular expression, also between slashes or bars.
Source: containerd, pkg/filters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from enclave_cc.errors import UsageError, foreign
from enclave_cc.record import record
from enclave_cc.wire.pb.snapshots import Kind

_LIMIT = 64 << 10  # characters of one filter
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_VALUE = re.compile(r"[^\s,]+")
_OPERATOR = re.compile(r"==|!=|~=")
_QUOTED = {quote: re.compile(rf"{re.escape(quote)}((?:[^\\\n{re.escape(quote)}]|\\.)*){re.escape(quote)}") for quote in '"/|'}
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\'\"/|])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@record
class Subject:
    """What a filter looks at."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]

    def field(self, path: Sequence[str]) -> str | None:
        """None when it is not there."""
        if path[0] == "name":
            return self.name
        if path[0] == "parent":
            return self.parent
        if path[0] == "kind":
            return self.kind.name.lower()
        if path[0] == "labels":
            return self.labels.get(".".join(path[1:]))
        return None


Filter = Callable[[Subject], bool]


def parse_all(texts: Sequence[str]) -> Filter:
    """Matches when any of `texts` does, or when there is none. Raises `UsageError("usage")`."""
    filters = [parse(text) for text in texts]
    if not filters:
        return lambda _: True
    return lambda subject: any(matches(subject) for matches in filters)


def parse(text: str) -> Filter:
    """Raises `UsageError("usage")`; the empty filter matches everything."""
    if not text:
        return lambda _: True
    selectors = _Parser(text).selectors()
    return lambda subject: all(matches(subject) for matches in selectors)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        if len(text) > _LIMIT:
            raise self.error("too long")

    def error(self, what: str) -> UsageError:
        return UsageError("usage", f"filter {foreign(self.text)!r}, character {self.at}: {what}")

    def selectors(self) -> list[Filter]:
        found = [self.selector()]
        while self.take(","):
            found.append(self.selector())
        if self.at < len(self.text):
            raise self.error("unexpected input")
        return found

    def selector(self) -> Filter:
        path = [self.field()]
        while self.take("."):
            path.append(self.field())
        self.skip_space()
        if self.at == len(self.text) or self.text[self.at] == ",":
            return lambda subject: subject.field(path) is not None
        operator = self.match(_OPERATOR)
        if operator is None:
            raise self.error("expected ==, != or ~=")
        value = self.value(quotes='"/|' if operator == "~=" else '"')
        if operator == "==":
            return lambda subject: subject.field(path) == value
        if operator == "!=":
            return lambda subject: (subject.field(path) or "") != value
        try:
            pattern = re.compile(value)
        except (re.error, RecursionError, OverflowError, FutureWarning) as problem:  # a warning where those are errors
            raise self.error(f"no regular expression: {foreign(problem)}") from problem
        return lambda subject: pattern.search(subject.field(path) or "") is not None

    def field(self) -> str:
        self.skip_space()
        quoted = self.quoted('"')
        found = self.match(_FIELD) if quoted is None else quoted
        if found is None:
            raise self.error("expected a field")
        return found

    def value(self, quotes: str) -> str:
        self.skip_space()
        quoted = self.quoted(quotes)
        found = self.match(_VALUE) if quoted is None else quoted
        if found is None:
            raise self.error("expected a value")
        return found

    def quoted(self, quotes: str) -> str | None:
        quote = self.text[self.at : self.at + 1]
        if not quote or quote not in quotes:
            return None
        inner = _QUOTED[quote].match(self.text, self.at)
        if inner is None:
            raise self.error("a quoted text does not end")
        self.at = inner.end()
        # A regular expression between slashes or bars keeps its backslashes, but for those before the quote.
        if quote != '"':
            return inner[1].replace("\\" + quote, quote)
        return _ESCAPE.sub(self.unescape, inner[1])

    def unescape(self, found: re.Match[str]) -> str:
        simple, octal, short, four, eight, _ = found.groups()
        if simple:
            return _SIMPLE.get(simple, simple)
        digits, base = (octal, 8) if octal else (short or four or eight, 16)
        if not digits or int(digits, base) > 0x10FFFF:
            raise self.error("no such escape")
        return chr(int(digits, base))

    def match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def take(self, sign: str) -> bool:
        self.skip_space()
        if not self.text.startswith(sign, self.at):
            return False
        self.at += len(sign)
        return True

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
