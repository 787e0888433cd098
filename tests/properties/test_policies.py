"""Policies that are nearly right: `lint` and `trace` say something of every text, and raise nothing but `UsageError`."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import defaults, lint, rego, trace

MODEST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DEFAULTS = [defaults.read_default(policy_id) for policy_id in (defaults.ATTESTATION_ID, defaults.RELEASE_ID)]
PIECES = (
    'input.sgx.body["attributes.flags"]',
    "input.submods[_]",
    'data["resource-path"][0]',
    "input[x].y",
    "x",
    '"é\\"]"',
    "`raw`",
    "{1, 2}",
    "[y | some y in input.l]",
    "{k: v | some k, v in input.o}",
    "count(input.l)",
    'query_reference_value("n")',
    "not input.a",
    "1",
    "-2.5",
    "null",
    "true",
    "f(1, input.a)",
    "input.a.b.c",
    '{"a": input.b}',
)
SIGNS = (" == ", " != ", " < ", " >= ", " in ", " := ", " = ", " + ", " | ", "\n\t", "; ")
HEAD = "package policy\nimport rego.v1\ndefault allow := false\nf(a, b) := a\n"
CLAIMS: dict[str, Any] = {"a": {"b": {"c": 1}}, "l": [1, 2], "o": {"k": "v"}, "submods": {"cpu0": {"y": 1}}}


@st.composite
def conditions(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(PIECES))
    for _ in range(draw(st.integers(0, 3))):
        text += draw(st.sampled_from(SIGNS)) + draw(st.sampled_from(PIECES))
    head = draw(
        st.sampled_from(("", "some x in input.l\n\t", "some x\n\t", "x := input.a\n\t", "every x in input.l {\n\t", "not "))
    )
    return head + text + ("\n\t}" if head.startswith("every") else "")


@MODEST
@given(conditions(), conditions())
def test_policies_of_any_conditions(one: str, two: str) -> None:
    text = f"{HEAD}allow if {{\n\t{one}\n\t{two}\n}}\nelse := 2 if {{\n\t{two}\n}}\n"
    report = lint.lint("p", text)
    assert report.kind == lint.RELEASE or report.errors
    try:
        policy = rego.Policy("p", text)
        allowed = rego.evaluate(policy, ("data.policy.allow",), CLAIMS, data={"resource-path": ["a"]}).values["data.policy.allow"]
    except UsageError:
        return
    failures = trace.trace(policy, "allow", CLAIMS, data={"resource-path": ["a"]})
    assert allowed is True or failures


@MODEST
@given(st.sampled_from(DEFAULTS), st.integers(0, 4000), st.integers(0, 40), st.text(alphabet='{}[]()"`#:=,. \nabin_', max_size=6))
def test_texts_that_were_damaged(text: str, at: int, size: int, instead: str) -> None:
    damaged = text[:at] + instead + text[at + size :]
    lint.lint("p", damaged, known_names=["sgx_mr_enclave"])
    try:
        policy = rego.Policy("p", damaged)
    except UsageError:
        return
    for rule in ("allow", "executables", "trust_claims"):
        trace.trace(policy, rule, CLAIMS)
