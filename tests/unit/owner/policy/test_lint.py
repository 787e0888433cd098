"""`policy lint`: what it finds, where, and what it suggests; and that it finds nothing in good policies."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_cc.owner.policy import defaults, lint, syntax

EVIDENCE = '["ear.veraison.annotated-evidence"]'


def findings(text: str, **options: Any) -> list[tuple[int, str, str, str]]:
    report = lint.lint("p.rego", text, **options)
    return [(found.line, found.severity, found.check, found.suggestion) for found in report.findings]


def release(
    condition: str, head: str = "package policy\nimport rego.v1\ndefault allow := false\n"
) -> list[tuple[int, str, str, str]]:
    """Findings of a release policy whose 4th line is `condition`."""
    return findings(f"{head}allow if {condition}\n")


@pytest.mark.parametrize("policy_id", [defaults.ATTESTATION_ID, defaults.RELEASE_ID])
def test_nothing_to_say_about_the_defaults(policy_id: str) -> None:
    report = lint.lint(policy_id, defaults.read_default(policy_id))
    assert report.findings == ()
    assert report.kind == (lint.ATTESTATION if policy_id == defaults.ATTESTATION_ID else lint.RELEASE)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("input.sgx.mr_enclave", "input.sgx.body.mr_enclave"),
        ("input.sgx.body.mrenclave", "input.sgx.body.mr_enclave"),
        ("input.sgx.body.mr_sginer", "input.sgx.body.mr_signer"),
        ("input.sgx.body.attributes.flags", 'input.sgx.body["attributes.flags"]'),
        ("input.sgx.tcb.status", "input.sgx.tcb_status"),
        ("input.sgx.body.tcb_status", "input.sgx.tcb_status"),
        ("input.quote.body.mr_enclave", "input.sgx.body.mr_enclave"),
    ],
)
def test_claims_that_are_never_there(wrong: str, right: str) -> None:
    text = f'package policy\nimport rego.v1\ntrust_claims := {{"executables": 3}} if {{\n\tinput.sgx\n\t{wrong}\n}}\n'
    assert (5, "error", "unknown-claim", right) in findings(text)


def test_claims_behind_variables() -> None:
    text = f"""package policy
import rego.v1
cpu := input.submods.cpu0
allow if {{
	evidence := cpu{EVIDENCE}
	evidence.sgx.mr_enclave == "{"aa" * 32}"
	some each in input.submods
	each["ear-status"] == "affirming"
	every _, submod in input.submods {{
		submod["ear.trustworthiness-vector"].executable == 3
	}}
}}
"""
    assert [found[:1] + found[2:] for found in findings(text)] == [
        (6, "unknown-claim", f"input.submods.cpu0{EVIDENCE}.sgx.body.mr_enclave"),
        (8, "unknown-claim", 'input.submods[_]["ear.status"]'),
        (10, "unknown-claim", 'input.submods[_]["ear.trustworthiness-vector"].executables'),
    ]


def test_a_request_has_its_own_data() -> None:
    assert release('data.resource_path[0] == "a"') == [(4, "error", "unknown-claim", 'data["resource-path"][_]')]
    assert release('data["resource-path"][0] == "a"') == []
    assert release('data.query.purpose == "a"') == []


def test_what_may_be_absent_is_only_a_warning() -> None:
    assert release(f"not input.submods.cpu0{EVIDENCE}.sgx.debug")[0][:3] == (4, "warning", "unknown-claim")
    assert release(f"not input.submods.cpu0{EVIDENCE}.sample") == []
    assert release(f"not input.submods.cpu0{EVIDENCE}.snp.measurement") == []


@pytest.mark.parametrize(
    ("condition", "suggestion"),
    [
        ("1 == 2", ""),
        ("false", ""),
        (f'input.submods.cpu0{EVIDENCE}.sgx.body.mr_enclave == "{"AB" * 32}"', f'"{"ab" * 32}"'),
        (f'input.submods.cpu0{EVIDENCE}.sgx.body.mr_enclave == "abcd"', ""),
        (f"input.submods.cpu0{EVIDENCE}.sgx.body.isv_svn >= 3", '"0300"'),
        (f"3 <= input.submods.cpu0{EVIDENCE}.sgx.body.isv_svn", '"0300"'),
        (f'input.submods.cpu0{EVIDENCE}.sgx.tcb_status == "Uptodate"', '"UpToDate"'),
        (f'input.submods.cpu0{EVIDENCE}.sgx.simulated == "false"', ""),
        (f'input.submods.cpu0{EVIDENCE}.sgx.tcb_eval_num == "17"', ""),
        (f'input.submods.cpu0{EVIDENCE}.sgx.advisory_ids == "INTEL-SA-1"', ""),
        (f"input.submods.cpu0{EVIDENCE}.sgx.collateral_expiration_status == 0", '"0"'),
        ('input.submods.cpu0["ear.status"] == "good"', ""),
        (f'input.submods.cpu0{EVIDENCE}.sgx == "x"', ""),
        ('{ input.iss == "a"; input.iss == "b" }', ""),
    ],
)
def test_conditions_that_never_hold(condition: str, suggestion: str) -> None:
    assert release(condition) == [(4, "error", "never-true", suggestion)]


@pytest.mark.parametrize(
    "condition",
    [
        f'input.submods.cpu0{EVIDENCE}.sgx.body.mr_enclave == "{"ab" * 32}"',
        f'input.submods.cpu0{EVIDENCE}.sgx.body.isv_svn == "0300"',
        f'input.submods.cpu0{EVIDENCE}.sgx.tcb_status != "OutOfDate"',
        f"input.submods.cpu0{EVIDENCE}.sgx.tcb_eval_num >= 17",
        'input.submods.cpu0["my.extension"].x == 1',
        '{ some a in input.submods; a["ear.status"] == "affirming"; some b in input.submods; b["ear.status"] == "none" }',
    ],
)
def test_conditions_that_may_hold(condition: str) -> None:
    assert release(condition) == []


def test_missing_rules_and_packages() -> None:
    assert findings("package policy\nx := 1\n") == [(1, "error", "missing-rule", "")]
    assert findings("package other\nallow := true if input.iss\n")[0] == (1, "error", "package", "package policy")
    wrong_kind = findings("package policy\nallow := true if input.iss\n", kind=lint.ATTESTATION)
    assert (1, "error", "missing-rule", "") in wrong_kind


def test_old_syntax() -> None:
    (found,) = lint.lint("p", "package policy\n\nallow { true }\n").findings
    assert (found.line, found.check) == (3, "deprecated-syntax")
    assert "allow if" in found.suggestion
    assert findings("package policy\ndefault allow = false\nallow if input.iss\n") == [
        (2, "warning", "deprecated-syntax", "default allow := ...")
    ]
    assert findings("package policy\nimport future.keywords.in\ndefault allow := false\nallow if input.iss\n") == [
        (2, "warning", "deprecated-syntax", "import rego.v1, or nothing")
    ]


def test_policies_that_do_not_compile() -> None:
    assert findings("package policy\nallow if {\n")[0][:3] == (3, "error", "compile")
    assert findings("package policy\nallow if {\n\tnonsense(1)\n}\n")[0][:3] == (3, "error", "compile")


def test_everybody_gets_everything() -> None:
    assert [found[2] for found in findings("package policy\ndefault allow := true\n")] == ["allows-by-default"]
    assert [found[2] for found in findings("package policy\nallow := true\n")] == ["allows-by-default"]


def test_trust_vectors() -> None:
    text = 'package policy\ntrust_claims := {\n\t"executable": 3,\n\t"hardware": 200,\n\t"configuration": 2\n}\n'
    assert findings(text) == [
        (3, "error", "unknown-trust-claim", '"executables"'),
        (4, "error", "bad-value", ""),
    ]


def test_reference_values_that_the_kbs_lacks() -> None:
    text = 'package policy\nallow if input.iss in query_reference_value("isuers")\n'
    assert findings(text, known_names=["issuers"]) == [(2, "warning", "unknown-reference-value", '"issuers"')]
    assert findings(text, known_names=["isuers"]) == []
    assert findings(text) == []


def test_evaluation_that_fails_while_nothing_is_set() -> None:
    text = 'package policy\nallow if {\n\tsome issuer in query_reference_value("issuers")\n\tissuer == input.iss\n}\n'
    assert [found[:3] for found in findings(text)] == [(3, "error", "fails-without-values")]


def test_statements_are_read_as_written() -> None:
    text = 'package policy\nallow if {\n\tinput.a == "x]" # not {\n\tinput.b in ["é", `}`]\n\t(1 + 2) * 3 > count([1, (2)])\n}\n'
    (rule,) = syntax.parse("p", text).rules
    assert [(each.text, each.line, each.sides) for each in rule.bodies[0].statements] == [
        ('input.a == "x]"', 3, ("input.a", '"x]"')),
        ('input.b in ["é", `}`]', 4, ("input.b", '["é", `}`]')),
        ("(1 + 2) * 3 > count([1, (2)])", 5, ("(1 + 2) * 3", "count([1, (2)])")),
    ]
