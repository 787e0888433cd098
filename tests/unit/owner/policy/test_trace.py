"""Which condition failed, with the values on both sides: of the default policies and of policies of owners' own."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_cc.owner.policy import defaults, rego, trace

HEAD = "package policy\nimport rego.v1\ndefault allow := false\n"


def failures(body: str, claims: dict[str, Any], **options: Any) -> list[trace.Failure]:
    return trace.trace(rego.Policy("p", HEAD + body), "allow", claims, **options)


@pytest.mark.parametrize(
    ("condition", "claims", "path", "found", "expected"),
    [
        ('input.a == "x"', {"a": "y"}, "a", "y", "x"),
        ('"x" == input.a', {"a": "y"}, "a", "y", "x"),
        ('input.a == "x"', {}, "a", None, "x"),
        ("input.n > 3", {"n": 2}, "n", 2, "more than 3"),
        ("3 < input.n", {"n": 2}, "n", 2, "more than 3"),
        ("input.n != 2", {"n": 2}, "n", 2, "not 2"),
        ('input.a in ["x", "z"]', {"a": "y"}, "a", "y", ["x", "z"]),
        ('input.a in query_reference_value("names")', {"a": "y"}, "a", "y", ["one"]),
        ("not input.bad", {"bad": True}, "bad", True, "absent or false"),
        ("input.missing", {}, "missing", None, "present, and not false"),
        ("input.off", {"off": False}, "off", False, "present, and not false"),
        ('startswith(input.a, "x")', {"a": "y"}, "a", "y", "this to hold"),
        ("some x in input.list", {"list": []}, "list", [], "something in it"),
        ("{ some x in input.list; x.n == 3 }", {"list": [{"n": 1}, {"n": 2}]}, "list.*.n", [1, 2], 3),
        ('{ e := input.deep.er; e["a.b"] == 1 }', {"deep": {"er": {"a.b": 2}}}, "deep.er.a.b", 2, 1),
        ('data["resource-path"][0] == "prod"', {}, "data.resource-path.*", "default", "prod"),
    ],
)
def test_the_condition_that_failed(condition: str, claims: dict[str, Any], path: str, found: Any, expected: Any) -> None:
    (failure,) = failures(
        f"allow if {condition}\n",
        claims,
        data={"plugin": "resource", "resource-path": ["default"], "query": {}},
        lookup={"names": ["one"]}.get,
    )
    assert failure.path is not None
    shown = ".".join(part or "*" for part in failure.path)
    assert (shown.removeprefix("input."), failure.found, failure.expected) == (path, found, expected)


def test_the_first_of_several_with_its_line() -> None:
    (failure,) = failures("allow if {\n\tinput.a == 1\n\tinput.b == 2 # comment\n\tinput.c == 3\n}\n", {"a": 1, "b": 9, "c": 9})
    assert (failure.line, failure.text, failure.found) == (6, "input.b == 2", 9)


def test_each_way_to_allow_has_its_own() -> None:
    found = failures("allow if input.a\nallow if input.b == 2\n", {"b": 1})
    assert [(each.line, each.found) for each in found] == [(4, None), (5, 1)]


def test_a_rule_behind_a_condition() -> None:
    (failure,) = failures("allow if fresh\nfresh if {\n\tinput.n >= limit\n}\nlimit := 7\n", {"n": 3})
    assert failure.text == "fresh"
    (inner,) = failure.because
    assert (inner.rule, inner.line, inner.found, inner.expected) == ("fresh", 6, 3, "at least 7")


def test_each_element_of_a_loop_that_failed() -> None:
    claims = {"submods": {"cpu0": {"s": "good", "n": 1}, "cpu1": {"s": "bad", "n": 1}, "gpu0": {"s": "good", "n": 5}}}
    (failure,) = failures('allow if {\n\tevery _, m in input.submods {\n\t\tm.s == "good"\n\t\tm.n < 3\n\t}\n}\n', claims)
    assert [(each.path, each.line, each.found) for each in failure.because] == [
        (("input", "submods", "cpu1", "s"), 6, "bad"),
        (("input", "submods", "gpu0", "n"), 7, 5),
    ]


def test_evaluation_that_fails_is_a_finding() -> None:
    (failure,) = failures("allow if {\n\tinput.a\n\tsome x in input.b\n}\n", {"a": 1, "b": None})
    assert "Got `null`" in failure.expected


def test_else_is_asked_only_where_the_policy_asks() -> None:
    policy = rego.Policy(
        "p", "package policy\nimport rego.v1\nv := 2 if input.a == 1\nelse := 32 if input.b\nelse := 40 if input.c\n"
    )
    found = trace.trace(policy, "v", {"a": 2, "b": True})
    assert [(each.line, each.gives) for each in found] == [(3, 2)]
    assert [(each.line, each.gives) for each in trace.trace(policy, "v", {"a": 2})] == [(3, 2), (4, 32), (5, 40)]


def test_the_rule_behind_a_trust_claim() -> None:
    policy = rego.Policy("p", defaults.read_default(defaults.ATTESTATION_ID))
    assert trace.rule_behind(policy, "executables") == "executables"
    assert trace.rule_behind(policy, "file-system") == "trust_claims"


def test_rules_with_arguments_and_odd_forms_do_no_harm() -> None:
    body = """
f(x) := y if { y := x + 1 }
allow if {
	f(input.n) == 9
}
allow if { x := [y | some y in input.l; y > 1]; count(x) == 5 }
allow if { input.n == 1; input.n as z }
"""
    with pytest.raises(Exception, match="compile"):
        failures(body, {"n": 1})
    found = failures(body.replace("; input.n as z", ""), {"n": 2, "l": [1, 2, 3]})
    assert [each.found for each in found] == [3, 2, 2]


def test_a_policy_without_end_is_given_up() -> None:
    body = "".join(f"allow if input.a{n} == 1\n" for n in range(1500))
    assert len(failures(body, {})) == 1500


def test_large_values_are_cut() -> None:
    (failure,) = failures('allow if input.a == "x"\n', {"a": "y" * 100_000})
    assert len(failure.found) < 3000
