"""A policy's text as rules, bodies, statements and references, each with its line: what `lint` and `explain` read.

regorus parses; here its syntax tree (`Engine.get_ast_as_json`, of the pinned version) becomes a few plain values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import regorus

from enclave_cc.errors import UsageError
from enclave_cc.record import record, replace

# Kinds of rule. "function" rules have arguments, so they have no value of their own.
COMPLETE, DEFAULT, SET, FUNCTION = "complete", "default", "set", "function"

UNNAMED = "__enclave_cc_"  # begins the names that we make up
_SIGN = re.compile(r"==|!=|<=|>=|:=|=|<|>|in\b")


Path = tuple[str | None, ...]


@record
class Reference:
    """A path such as `input.sgx.body["mr_enclave"]`. A part is None where the policy computes it."""

    root: str
    parts: Path
    line: int

    @property
    def path(self) -> str:
        return render((self.root, *self.parts))


@record
class Statement:
    """One line of a rule's body, as the author wrote it. `node` is regorus' literal: {"Expr": ...}, {"SomeIn": ...}.

    `sides`: the texts left and right of a comparison, assignment or `in`; `sign` is regorus' name of it. `loop`: the head
    of an `every` as `some KEY, VALUE in DOMAIN`, with `key` and `inner`, its statements.
    """

    text: str
    line: int
    node: Mapping[str, Any]
    sides: tuple[str, str] | None = None
    sign: str = ""
    loop: str = ""
    key: str = ""
    inner: tuple[Statement, ...] = ()

    @property
    def kind(self) -> str:
        return next(iter(self.node))

    @property
    def expression(self) -> Mapping[str, Any]:
        """The expression of an "Expr" or "NotExpr" statement; empty for others."""
        found: Mapping[str, Any] = self.node[self.kind].get("expr", {}) if self.kind in ("Expr", "NotExpr") else {}
        return found


@record
class Body:
    """One way for a rule to hold. `value` is the value's node, None for `true` or (`else` apart) the head's value."""

    line: int
    statements: tuple[Statement, ...]
    value: Mapping[str, Any] | None
    is_else: bool


@record
class Rule:
    """One definition; a name may have several. `value` is the head's node, None for `true`."""

    name: str
    kind: str
    line: int
    value: Mapping[str, Any] | None
    bodies: tuple[Body, ...]
    assigned_with: str = ":="


@record
class Module:
    """A policy that parses."""

    text: str
    package: str
    imports: tuple[str, ...]
    rules: tuple[Rule, ...]

    def find(self, name: str) -> list[Rule]:
        return [rule for rule in self.rules if rule.name == name]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(rule.name for rule in self.rules)


def parse(name: str, text: str) -> Module:
    """Raises `UsageError("policy-invalid")` with the place of the error."""
    tree = _read_tree(name, text)
    if isinstance(tree, str):
        raise UsageError("policy-invalid", f"policy {name} does not parse: {tree}")
    source = _Source(text)
    package = next(references(tree["package"]["refr"]), None)
    return Module(
        text=text,
        package=package.path if package is not None else "",
        imports=tuple(source.cut(each["span"]["start"], each["span"]["end"]) for each in tree["imports"]),
        rules=tuple(_read_rule(source, each) for each in tree["rules"]),
    )


def _read_tree(name: str, text: str) -> Any:
    """The tree, or what is wrong. No error leaves here: its traceback would keep the engine, which no other thread may free."""
    engine = regorus.Engine()
    try:
        engine.add_policy(name, text)
        return json.loads(engine.get_ast_as_json())[0]["ast"]
    except RuntimeError as error:
        return describe_fault(error)


def describe_fault(error: RuntimeError) -> str:
    """regorus' message without the Rust stack trace that it may carry, on one line."""
    return " ".join(str(error).split("Stack backtrace:")[0].split())


def references(node: Any) -> Iterator[Reference]:
    """Every path below `node`, functions' names left out, in the order of the text."""
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, Mapping):
        if len(node) == 1 and next(iter(node)) in ("Var", "RefDot", "RefBrack"):
            yield from _follow(node)
        elif "fcn" in node:
            yield from references(node["params"])
        else:
            for item in node.values():
                yield from references(item)


def calls(node: Any, function: str) -> Iterator[tuple[str | None, int]]:
    """(first argument where it is plain text, line) of each call of `function` below `node`."""
    if isinstance(node, list):
        for item in node:
            yield from calls(item, function)
    elif isinstance(node, Mapping):
        if "fcn" in node and node["fcn"].get("Var", {}).get("value") == function:
            plain = literal(node["params"][0]) if node["params"] else None
            name = plain[1] if plain is not None and isinstance(plain[1], str) else None
            yield name, node["fcn"]["Var"]["span"]["line"]
        for item in node.values():
            yield from calls(item, function)


def literal(node: Mapping[str, Any]) -> tuple[str, Any] | None:
    """(kind, value) of a node that is a text, number, boolean or null; (kind, None) is null. None for anything else."""
    kind = next(iter(node), "")
    if kind in ("String", "RawString", "Number", "Bool"):
        return kind, node[kind]["value"]
    return ("Null", None) if kind == "Null" else None


def render(parts: Path) -> str:
    """A path as Rego writes it: `input.sgx.body["attributes.flags"]`, `[_]` for a computed part."""
    shown = str(parts[0])
    for part in parts[1:]:
        if part is None:
            shown += "[_]"
        elif part.isidentifier() and part.isascii():
            shown += f".{part}"
        else:
            shown += f"[{json.dumps(part)}]"
    return shown


def _follow(node: Mapping[str, Any]) -> Iterator[Reference]:
    parts: list[str | None] = []
    inner: list[Any] = []
    while "Var" not in node:
        if "RefDot" in node:
            parts.append(node["RefDot"]["field"][1])
            node = node["RefDot"]["refr"]
        elif "RefBrack" in node:
            index = node["RefBrack"]["index"]
            plain = literal(index)
            parts.append(plain[1] if plain is not None and isinstance(plain[1], str) else None)
            if plain is None:
                inner.append(index)
            node = node["RefBrack"]["refr"]
        else:  # a path into something else than a name, such as a call's answer
            yield from references([node, *inner])
            return
    variable = node["Var"]
    yield Reference(variable["value"], tuple(reversed(parts)), variable["span"]["line"])
    yield from references(inner)


def _read_rule(source: _Source, tree: Mapping[str, Any]) -> Rule:
    if "Default" in tree:
        found = tree["Default"]
        sign = ":=" if found["op"] == "ColEq" else "="
        return Rule(_name(found["refr"]), DEFAULT, found["span"]["line"], found["value"], (), sign)
    spec = tree["Spec"]
    kind, head = next(iter(spec["head"].items()))
    assign = head.get("assign") or {}
    bodies = tuple(
        Body(
            line=body["span"]["line"],
            statements=tuple(_read_statement(source, each) for each in body["query"]["stmts"]),
            value=(body["assign"] or {}).get("value"),
            is_else=body["is_else"],
        )
        for body in spec["bodies"]
    )
    return Rule(
        name=_name(head["refr"]),
        kind={"Compr": COMPLETE, "Set": SET, "Func": FUNCTION}[kind],
        line=spec["span"]["line"],
        value=assign.get("value"),
        bodies=bodies,
        assigned_with="=" if assign.get("op") == "Eq" else ":=",
    )


def _read_statement(source: _Source, tree: Mapping[str, Any]) -> Statement:
    start, end, line = source.begin(tree["span"]["start"]), tree["span"]["end"], tree["span"]["line"]
    node = tree["literal"]
    plain = Statement(source.cut(start, end), line, node)
    if plain.kind == "Every":
        every = node["Every"]
        value = source.cut(every["value"]["start"], every["value"]["end"])
        key = source.cut(every["key"]["start"], every["key"]["end"]) if every["key"] else "_"
        key = f"{UNNAMED}key" if key == "_" else key
        domain = next(iter(every["domain"].values()))["span"]
        return replace(
            plain,
            loop=f"some {key}, {value} in {source.cut(domain['start'], domain['end'])}",
            key=key,
            inner=tuple(_read_statement(source, each) for each in every["query"]["stmts"]),
        )
    if plain.kind == "Expr":
        kind, found = next(iter(plain.expression.items()))
        if kind in ("BoolExpr", "AssignExpr"):
            sides = source.split(start, next(iter(found["lhs"].values()))["span"]["end"], end)
            return replace(plain, sides=sides, sign=found["op"] if kind == "BoolExpr" else "Assign")
        if kind == "Membership" and found["key"] is None:
            return replace(plain, sides=source.split(start, next(iter(found["value"].values()))["span"]["end"], end), sign="In")
    return plain


def _name(node: Mapping[str, Any]) -> str:
    return next(references(node)).path


class _Source:
    """The text by byte offsets, as regorus counts."""

    def __init__(self, text: str) -> None:
        self._raw = text.encode()

    def begin(self, start: int) -> int:
        """Where a statement begins: regorus' span of a text begins behind its quote."""
        return start - 1 if self._raw[start - 1 : start] in (b'"', b"`") else start

    def cut(self, start: int, end: int) -> str:
        """From `start` to at least `end`: regorus' spans leave out a closing quote or bracket."""
        return self._raw[start : self._close(start, end)].decode("utf-8", "replace")

    def split(self, start: int, middle: int, end: int) -> tuple[str, str]:
        """What is left and right of the operator that follows `middle`."""
        left_end = self._close(start, middle)
        right = self._raw[left_end : self._close(start, end)].decode("utf-8", "replace").strip()
        sign = _SIGN.match(right)
        return self.cut(start, middle).strip(), right[sign.end() :].strip() if sign else right

    def _close(self, start: int, end: int) -> int:
        raw, at, open_brackets = self._raw, start, 0
        quote = b""
        while at < len(raw):
            here = raw[at : at + 1]
            if quote:
                if here == b"\\" and quote == b'"':
                    at += 1
                elif here == quote:
                    quote = b""
            elif at >= end and not open_brackets:
                break
            elif here in (b'"', b"`"):
                quote = here
            elif here == b"#":
                at = (raw.find(b"\n", at) + 1 or len(raw) + 1) - 1
                continue
            elif here in b"([{":
                open_brackets += 1
            elif here in b")]}":
                open_brackets -= 1
            at += 1
        return min(at, len(raw))
