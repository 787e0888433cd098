"""Which conditions of a policy failed: each rule's bodies are asked statement by statement, as the author wrote them.

For every body a module of made-up rules is added beside the policy, `holds_K if { the first K statements }`. The first
that is undefined names the statement that failed; two more rules give the values left and right of it. So the answer is
regorus' own and holds for any policy; where something cannot be asked (a rule with arguments), it stays a plain line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from enclave_cc.owner.policy import rego, syntax
from enclave_cc.owner.policy.lint import QUERY
from enclave_cc.owner.policy.scope import Scope
from enclave_cc.record import record

UNNAMED = syntax.UNNAMED
_MAX_DEPTH = 4
_MAX_ELEMENTS = 4  # of a loop whose condition failed
_MAX_VALUES = 16
_MAX_PROBES = 400  # modules of one explanation: a policy of thousands of lines must not become a way to keep the KBS busy
_MAX_SHOWN = 2048  # characters of one value
_SIGNS = {"Ne": "not ", "Lt": "less than ", "Le": "at most ", "Gt": "more than ", "Ge": "at least "}


@record
class Failure:
    """One condition that did not hold.

    `path` is the claim it speaks of, None when it names none; `found` its value, None when it is absent; `expected` what
    would have held. `names` are the reference values that the body asks. `gives` is what the body would have given, where
    that is a plain value. `because`: rules of the policy that the condition rests on.
    """

    rule: str
    line: int
    text: str
    path: syntax.Path | None
    found: Any
    expected: Any
    names: tuple[str, ...] = ()
    gives: Any = True
    because: tuple[Failure, ...] = ()


def trace(
    policy: rego.Policy,
    rule: str,
    claims: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    lookup: rego.Lookup | None = None,
) -> list[Failure]:
    """Why `rule` (without `data.policy.`) has no better value: one failure for each body that does not hold."""
    module = syntax.parse(policy.id, policy.text)
    with rego.open_session(policy, claims, data=data, lookup=lookup) as session:
        return _Tracer(module, session.engine).explain(rule, 0)


def rule_behind(policy: rego.Policy, claim: str) -> str:
    """The rule that gives a trust claim its value: `executables` for `trust_claims := {"executables": executables}`."""
    module = syntax.parse(policy.id, policy.text)
    for rule in module.find("trust_claims"):
        for _, name, value in (rule.value or {}).get("Object", {}).get("fields", []):
            if syntax.literal(name) == ("String", claim) and "Var" in value and value["Var"]["value"] in module.names:
                return str(value["Var"]["value"])
    return "trust_claims"


class _Tracer:
    def __init__(self, module: syntax.Module, engine: Any) -> None:
        self._module = module
        self._engine = engine
        self._head = "\n".join(["package policy", *module.imports])
        self._top = Scope.of_module(module)
        self._left = _MAX_PROBES

    def explain(self, name: str, depth: int) -> list[Failure]:
        failures = []
        for rule in self._module.find(name):
            if rule.kind == syntax.FUNCTION:
                continue
            for body in rule.bodies:
                failure = self._explain_body(rule, body, depth)
                if failure is None:
                    break  # this one holds, so that its `else` bodies were not asked
                failures.append(failure)
        return failures

    def _explain_body(self, rule: syntax.Rule, body: syntax.Body, depth: int) -> Failure | None:
        value = body.value if body.is_else or body.value is not None else rule.value
        plain = None if value is None else syntax.literal(value)
        gives = True if value is None else plain[1] if plain is not None else None
        names = tuple(dict.fromkeys(_names_in(body)))
        return self._explain_statements(rule, body.statements, [], self._top.copy(), names, gives, depth)

    def _explain_statements(
        self,
        rule: syntax.Rule,
        statements: Sequence[syntax.Statement],
        before: Sequence[str],
        scope: Scope,
        names: tuple[str, ...],
        gives: Any,
        depth: int,
    ) -> Failure | None:
        """The first of `statements` that does not hold after `before`; None when all do."""
        texts = [*before, *(each.text for each in statements)]
        start = len(before)
        probes = {f"holds_{n}": _join(texts[: n + 1]) for n in range(start, len(texts))}
        answers = self._ask(probes)
        for number, statement in enumerate(statements, start):
            answer = answers.get(f"holds_{number}")
            if answer is True:
                scope.bind(statement)
                continue
            failure = self._explain_statement(rule, statement, texts[:number], scope, names, gives, depth)
            if isinstance(answer, _Fault):
                return Failure(rule.name, statement.line, failure.text, failure.path, failure.found, answer.text, names, gives)
            return failure
        return None

    def _explain_statement(
        self,
        rule: syntax.Rule,
        statement: syntax.Statement,
        before: Sequence[str],
        scope: Scope,
        names: tuple[str, ...],
        gives: Any,
        depth: int,
    ) -> Failure:
        found, expected = None, None
        path = self._find_path(statement, scope)
        because: list[Failure] = []
        if statement.kind == "Every":
            because = self._explain_loop(rule, statement, before, scope, names, gives, depth)
            expected = "each of them to hold"
        elif statement.sides is not None:
            found, expected = self._compare(statement, before, scope)
        elif statement.kind == "NotExpr":
            found = self._collect(statement.text.removeprefix("not").strip(), before)
            expected = "absent or false"
        elif statement.kind == "SomeIn":
            found, expected = self._collect(statement.text.split(" in ", 1)[-1], before), "something in it"
        elif "Call" in statement.expression:
            inside = [each for each in syntax.references(statement.node) if scope.resolve(each)[0] in ("input", "data")]
            found = self._collect(inside[0].path, before) if inside else None
            expected = "this to hold"
        else:
            found, expected = self._collect(statement.text, before), "present, and not false"
        rules = [
            name for name in dict.fromkeys(each.root for each in syntax.references(statement.node)) if name in self._module.names
        ]
        for name in rules:
            names += tuple(asked for asked in self._names_asked(name) if asked not in names)
        if depth < _MAX_DEPTH and not because and (statement.sides is None or found is None or expected is None):
            for name in rules:
                because += self.explain(name, depth + 1) if name != rule.name else []
        text = " ".join(statement.text.split())
        return Failure(rule.name, statement.line, text, path, found, expected, names, gives, tuple(because))

    def _names_asked(self, name: str) -> list[str]:
        return [asked for rule in self._module.find(name) for body in rule.bodies for asked in _names_in(body)]

    def _find_path(self, statement: syntax.Statement, scope: Scope) -> syntax.Path | None:
        paths = [scope.resolve(each) for each in syntax.references(statement.node)]
        known = [path for path in paths if path[0] in ("input", "data") and len(path) > 1]
        return min(known, key=lambda path: path[0] != "input", default=None)

    def _compare(self, statement: syntax.Statement, before: Sequence[str], scope: Scope) -> tuple[Any, Any]:
        """(what the claim is, what it should be), whichever side of the sign the claim is on."""
        left, right = statement.sides or ("", "")
        values = [self._collect(text, before) for text in (left, right)]
        if statement.sign == "Assign":
            return values[1], "a value"
        sign = statement.sign
        sides = [next(iter(statement.expression.values())).get(name) for name in ("lhs", "rhs")]
        if sign != "In" and _speaks_of_claims(sides[1], scope) and not _speaks_of_claims(sides[0], scope):
            values.reverse()
            sign = {"Lt": "Gt", "Gt": "Lt", "Le": "Ge", "Ge": "Le"}.get(sign, sign)
        expected = values[1]
        if sign in _SIGNS:
            expected = _SIGNS[sign] + json.dumps(expected)
        return values[0], expected

    def _explain_loop(
        self,
        rule: syntax.Rule,
        statement: syntax.Statement,
        before: Sequence[str],
        scope: Scope,
        names: tuple[str, ...],
        gives: Any,
        depth: int,
    ) -> list[Failure]:
        inner = _join([each.text for each in statement.inner])
        answers = self._ask_values(
            {
                "all": f"[{statement.key} | {_join([*before, statement.loop])}]",
                "good": f"[{statement.key} | {_join([*before, statement.loop, inner])}]",
            }
        )
        keys, good = _as_list(answers.get("all")), _as_list(answers.get("good"))
        failures = []
        domain = scope.path_of(statement.node["Every"]["domain"])
        variable = statement.loop.split(" in ", 1)[0].rsplit(" ", 1)[-1]
        for key in [key for key in keys if key not in good][:_MAX_ELEMENTS]:
            inside = scope.copy()
            inside.set(variable, None if domain is None else (*domain, str(key)))
            chosen = [*before, statement.loop, f"{statement.key} == {json.dumps(key)}"]
            failure = self._explain_statements(rule, statement.inner, chosen, inside, names, gives, depth)
            if failure is not None:
                failures.append(failure)
        return failures

    def _collect(self, text: str, before: Sequence[str]) -> Any:
        """The value of an expression after `before`: one, or a list where `before` has several ways to hold."""
        condition = _join(before) or "true"
        answers = self._ask_values({"value": f"[{UNNAMED} | {condition}\n{UNNAMED} := {text}]"})
        found = answers.get("value")
        if not isinstance(found, list):
            return None
        unique = []
        for value in found:
            if value not in unique:
                unique.append(value)
        if len(unique) == 1:
            return _shorten(unique[0])
        return [_shorten(value) for value in unique[:_MAX_VALUES]] or None

    def _ask(self, conditions: Mapping[str, str]) -> dict[str, Any]:
        """Whether each condition holds: True, absent, or a `_Fault` of evaluation."""
        return self._query({name: f"{UNNAMED}{name} if {{\n{text}\n}}" for name, text in conditions.items()})

    def _ask_values(self, expressions: Mapping[str, str]) -> dict[str, Any]:
        return self._query({name: f"{UNNAMED}{name} := {text}" for name, text in expressions.items()})

    def _query(self, rules: Mapping[str, str]) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0 or not rules:
            return {}
        engine = self._engine.clone()
        answers: dict[str, Any] = {}
        try:
            engine.add_policy("explanation", "\n".join([self._head, *rules.values()]))
        except RuntimeError:
            return answers  # something of the policy that does not stand alone
        for name in rules:
            try:
                found = json.loads(engine.eval_query_as_json(f"data.policy.{UNNAMED}{name}")).get("result")
            except RuntimeError as error:
                answers[name] = _Fault(syntax.describe_fault(error).split("error:", 1)[-1].strip())
                continue
            if found:
                answers[name] = found[0]["expressions"][0]["value"]
        return answers


@record
class _Fault:
    text: str


def _names_in(body: syntax.Body) -> list[str]:
    return [name for each in body.statements for name, _ in syntax.calls(each.node, QUERY) if name is not None]


def _join(texts: Sequence[str]) -> str:
    return "\n".join(texts)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _speaks_of_claims(node: Any, scope: Scope) -> bool:
    return any(scope.resolve(each)[0] in ("input", "data") for each in syntax.references(node))


def _shorten(value: Any) -> Any:
    text = json.dumps(value)
    return value if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
