"""What is probably wrong with a policy, with lines: a policy that compiles and never allows anything is the usual mistake.

Errors are findings that make a rule useless or the policy unusable; warnings may be meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import layout, rego, syntax
from enclave_cc.owner.policy.scope import Scope
from enclave_cc.record import record
from enclave_cc.wire.rcar import token

ATTESTATION, RELEASE = "attestation", "release"
MAIN_RULES = {ATTESTATION: "trust_claims", RELEASE: "allow"}
ERROR, WARNING = "error", "warning"
QUERY = "query_reference_value"

_INPUTS: Mapping[str, Mapping[str, Any]] = {ATTESTATION: layout.ATTESTATION, RELEASE: layout.RELEASE}
_PLACE = re.compile(r"--> (.*?):(\d+):(\d+)")
_FATAL = ("compile", "deprecated-syntax", "fails-without-values", "package")
_MIRRORED = {"Eq": "Eq", "Ne": "Ne", "Lt": "Gt", "Gt": "Lt", "Le": "Ge", "Ge": "Le"}


@record
class Finding:
    """`check` is a stable name; `suggestion` what to write instead, empty where there is no guess."""

    severity: str
    line: int
    check: str
    message: str
    suggestion: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "line": self.line,
            "check": self.check,
            "message": self.message,
            "suggestion": self.suggestion,
        }


@record
class Report:
    """Everything found in one policy, by line. `kind` is None when the policy has neither main rule."""

    name: str
    kind: str | None
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self.findings)


def lint(name: str, text: str, *, kind: str | None = None, known_names: Collection[str] | None = None) -> Report:
    """Checks `text`; `known_names`: the reference values that the KBS has, None when that is not known."""
    try:
        module = syntax.parse(name, text)
    except UsageError as error:
        return Report(name, kind, (_explain_fault(error.what),))
    kinds = [each for each, rule in MAIN_RULES.items() if rule in module.names]
    found = list(_check_main(module, kind, kinds))
    kind = kind or (kinds[0] if kinds else None)
    try:
        rego.Policy(name, text)
    except UsageError as error:
        if module.package == "policy":  # said already otherwise
            found.append(_explain_fault(error.what))
    if kind is not None:
        reader = _Reader(module, kind)
        found += reader.check_rules()
        found += _check_evaluation(name, text, kind, failed=any(finding.check in _FATAL for finding in found))
    if kind == ATTESTATION:
        found += _check_vector(module)
    found += _check_style(module)
    found += _check_reference_names(module, known_names)
    unique = {(finding.line, finding.check, finding.message): finding for finding in found}
    return Report(name, kind, tuple(sorted(unique.values(), key=lambda finding: (finding.line, finding.severity, finding.check))))


def _explain_fault(what: str) -> Finding:
    place = _PLACE.search(what)
    line = int(place[2]) if place else 1
    message = what.split("error:", 1)[-1].strip() if "error:" in what else what
    if "keyword is required before rule" in message:
        return Finding(
            ERROR,
            line,
            "deprecated-syntax",
            f"this is Rego v0, policies are Rego v1: {message}",
            "write `allow if { ... }` for `allow { ... }`, and `deny contains x if { ... }` for `deny[x] { ... }`",
        )
    if re.search(r"expects .*Got `null`", message):
        return Finding(ERROR, line, "fails-without-values", message, "check it first, for instance with is_array(...)")
    return Finding(ERROR, line, "compile", message)


def _check_main(module: syntax.Module, kind: str | None, kinds: list[str]) -> Iterator[Finding]:
    if module.package != "policy":
        yield Finding(ERROR, 1, "package", f"the package is {module.package!r}, and only `policy` is asked", "package policy")
    wanted = kind or (kinds[0] if kinds else None)
    if wanted is None:
        yield Finding(ERROR, 1, "missing-rule", "there is neither `allow` (release policy) nor `trust_claims` (attestation policy)")
    elif MAIN_RULES[wanted] not in module.names:
        yield Finding(
            ERROR, 1, "missing-rule", f"{'an' if wanted == ATTESTATION else 'a'} {wanted} policy needs {MAIN_RULES[wanted]}"
        )
    for rule in module.find("allow"):
        plain = None if rule.value is None else syntax.literal(rule.value)
        if rule.kind == syntax.DEFAULT and plain == ("Bool", True):
            yield Finding(
                WARNING, rule.line, "allows-by-default", "whoever attests at all gets everything", "default allow := false"
            )
        elif rule.kind != syntax.DEFAULT and not rule.bodies and (plain is None or plain == ("Bool", True)):
            yield Finding(WARNING, rule.line, "allows-by-default", "`allow` holds without any condition")


def _check_evaluation(name: str, text: str, kind: str, *, failed: bool) -> Iterator[Finding]:
    """Whether the rules evaluate over claims of the usual form while no reference value is set."""
    if failed:
        return
    sgx: Any = {"sgx": layout.example(), "report_data": "00" * 64, "init_data": "00" * 64, "init_data_claims": None}
    claims = (
        sgx if kind == ATTESTATION else {"submods": {"cpu0": {token.STATUS: "affirming", token.EVIDENCE: sgx, token.VECTOR: {}}}}
    )
    data = {"plugin": "resource", "resource-path": ["default", "key", "one"], "query": {}}
    rule = f"data.policy.{MAIN_RULES[kind]}"
    try:
        policy = rego.Policy(name, text)
        rego.evaluate(policy, (rule,), claims, data=data if kind == RELEASE else None)
    except UsageError as error:
        place = _PLACE.search(error.what)
        message = error.what.split("error:", 1)[-1].strip()
        yield Finding(
            WARNING,
            int(place[2]) if place else 1,
            "fails-without-values",
            f"while a reference value is not set, evaluation fails and nothing is released: {message}",
            "check it first, for instance with is_array(...)",
        )


def _check_vector(module: syntax.Module) -> Iterator[Finding]:
    for rule in module.find("trust_claims"):
        fields = (rule.value or {}).get("Object", {}).get("fields", [])
        for _, name, value in fields:
            key, number = syntax.literal(name), syntax.literal(value)
            line = next(iter(name.values()))["span"]["line"]
            if key is not None and key[1] not in token.CLAIMS:
                near = difflib.get_close_matches(str(key[1]), token.CLAIMS, n=1, cutoff=0.5)
                yield Finding(
                    ERROR, line, "unknown-trust-claim", f"there is no trust claim {key[1]!r}", f'"{near[0]}"' if near else ""
                )
            if number is not None and (number[0] != "Number" or number[1] != int(number[1]) or not -128 <= number[1] <= 127):
                yield Finding(ERROR, line, "bad-value", f"{key and key[1]} is no number of one signed byte (-128 to 127)")


def _check_style(module: syntax.Module) -> Iterator[Finding]:
    for rule in module.rules:
        if rule.kind == syntax.DEFAULT and rule.assigned_with == "=":
            yield Finding(
                WARNING, rule.line, "deprecated-syntax", f"`default {rule.name} =` is Rego v0's form", f"default {rule.name} := ..."
            )
    for number, line in enumerate(module.text.splitlines(), 1):
        if line.startswith("import future.keywords"):
            yield Finding(WARNING, number, "deprecated-syntax", "Rego v1 has these keywords", "import rego.v1, or nothing")


def _check_reference_names(module: syntax.Module, known: Collection[str] | None) -> Iterator[Finding]:
    if known is None:
        return
    for name, line in reference_names(module):
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
            yield Finding(
                WARNING, line, "unknown-reference-value", f"the KBS has no reference value {name!r}", f'"{near[0]}"' if near else ""
            )


def reference_names(module: syntax.Module) -> list[tuple[str, int]]:
    """(name, line) of each reference value that the policy asks for by a plain name."""
    nodes: list[Any] = []
    for rule in module.rules:
        nodes += [rule.value, *(body.value for body in rule.bodies)]
        nodes += [statement.node for body in rule.bodies for statement in body.statements]
    return [(name, line) for name, line in syntax.calls(nodes, QUERY) if name is not None]


class _Reader:
    """Goes through the rules with a `Scope`, so that `sgx := input.sgx` hides no mistake."""

    def __init__(self, module: syntax.Module, kind: str) -> None:
        self._module = module
        self._kind = kind
        self._top = Scope.of_module(module)

    def check_rules(self) -> Iterator[Finding]:
        for rule in self._module.rules:
            yield from self._check_node(rule.value, self._top)
            for body in rule.bodies:
                scope = self._top.copy()
                wanted: dict[syntax.Path, tuple[str, Any]] = {}
                for statement in body.statements:
                    yield from self._check_statement(statement, scope)
                    yield from self._check_never(statement, scope, rule, wanted)
                    scope.bind(statement)
                yield from self._check_node(body.value, scope)

    def _check_statement(self, statement: syntax.Statement, scope: Scope) -> Iterator[Finding]:
        if statement.kind != "Every":
            yield from self._check_node(statement.node, scope, negated=statement.kind == "NotExpr")
            return
        yield from self._check_node(statement.node["Every"]["domain"], scope)
        inside = scope.copy()
        inside.bind(statement)
        for each in statement.inner:
            yield from self._check_statement(each, inside)
            inside.bind(each)

    def _check_node(self, node: Any, scope: Scope, *, negated: bool = False) -> Iterator[Finding]:
        for reference in syntax.references(node):
            root, *parts = scope.resolve(reference)
            if root == "input" and parts:
                yield from self._check_path(_INPUTS[self._kind], "input", tuple(parts), reference.line, negated=negated)
            elif root == "data" and parts and parts[0] not in ("policy", None):
                tree = layout.REQUEST if self._kind == RELEASE else {}
                yield from self._check_path(tree, "data", tuple(parts), reference.line, negated=negated)

    def _check_path(self, tree: Mapping[str, Any], root: str, parts: syntax.Path, line: int, *, negated: bool) -> Iterator[Finding]:
        try:
            layout.find(tree, parts)
        except KeyError as error:
            known = int(error.args[0])
            near = layout.suggest(tree, parts)
            if near is not None:  # with the author's own words for what may have any name
                near = tuple(parts[n] if part is None and n < len(parts) else part for n, part in enumerate(near))
            # `not input.x` of a path that never is there always holds: it may be meant for other verifiers.
            yield Finding(
                WARNING if negated else ERROR,
                line,
                "unknown-claim",
                f"{syntax.render((root, *parts))} is never there: "
                f"nothing in {syntax.render((root, *parts[:known]))} is called {parts[known]!r}",
                "" if near is None else syntax.render((root, *near)),
            )

    def _check_never(
        self,
        statement: syntax.Statement,
        scope: Scope,
        rule: syntax.Rule,
        wanted: dict[syntax.Path, tuple[str, Any]],
    ) -> Iterator[Finding]:
        """Conditions that no claims can meet."""
        expression = statement.expression
        if statement.kind != "Expr" or not expression:
            return
        line, text = statement.line, " ".join(statement.text.split())
        plain = syntax.literal(expression)
        if plain is not None and plain[1] in (False, None):
            yield Finding(ERROR, line, "never-true", f"{rule.name} is never true here: `{text}`")
        if "BoolExpr" not in expression:
            return
        comparison = expression["BoolExpr"]
        left, right, sign = comparison["lhs"], comparison["rhs"], comparison["op"]
        if syntax.literal(left) is not None:
            left, right, sign = right, left, _MIRRORED[sign]
        value = syntax.literal(right)
        if value is None:
            return
        if (constant := syntax.literal(left)) is not None:
            if sign == "Eq" and constant != value:
                yield Finding(ERROR, line, "never-true", f"`{text}` compares two values that differ")
            return
        path = scope.path_of(left)
        if path is None or path[0] != "input":
            return
        try:
            leaf = layout.find(_INPUTS[self._kind], path[1:])
        except KeyError:
            return  # said already
        yield from (Finding(ERROR, line, "never-true", f"`{text}`: {what}", hint) for what, hint in _misfits(leaf, sign, value))
        if sign == "Eq":
            before = wanted.setdefault(path, value)
            if before != value and None not in path:
                yield Finding(ERROR, line, "never-true", f"{syntax.render(path)} cannot be {before[1]!r} and {value[1]!r} at once")


def _misfits(leaf: Any, sign: str, value: tuple[str, Any]) -> Iterator[tuple[str, str]]:
    """Why a claim is never equal to a plain value."""
    if not isinstance(leaf, layout.Leaf):
        if sign == "Eq":
            yield "this is an object, not a plain value", ""
        return
    text = value[0] in ("String", "RawString")
    if leaf.kind == "hex":
        if not text:
            yield f"this claim is text of {leaf.size * 2} hex digits, low byte first, never a number", _as_hex(leaf, value[1])
        elif sign == "Eq" and (len(value[1]) != leaf.size * 2 or re.fullmatch("[0-9a-f]*", value[1]) is None):
            hint = value[1].lower() if re.fullmatch(f"[0-9a-fA-F]{{{leaf.size * 2}}}", value[1]) else ""
            yield f"this claim is {leaf.size * 2} lower-case hex digits", f'"{hint}"' if hint else ""
    elif leaf.kind == "text" and sign == "Eq" and not text:
        yield "this claim is text", f'"{value[1]}"' if value[0] == "Number" else ""
    elif leaf.kind == "number" and value[0] != "Number" and sign == "Eq":
        yield "this claim is a number", ""
    elif leaf.kind == "boolean" and value[0] != "Bool" and sign == "Eq":
        yield "this claim is true or false", ""
    elif leaf.kind == "list" and sign == "Eq":
        yield "this claim is a list; use `in`", ""
    if leaf.values and text and sign == "Eq" and value[1] not in leaf.values:
        near = difflib.get_close_matches(value[1].lower(), [each.lower() for each in leaf.values], n=1, cutoff=0.5)
        hint = next((f'"{each}"' for each in leaf.values if near and each.lower() == near[0]), "")
        yield f"this claim is one of {', '.join(leaf.values)}", hint


def _as_hex(leaf: layout.Leaf, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << (8 * leaf.size):
        return f'"{value.to_bytes(leaf.size, "little").hex()}"'
    return ""
