"""`policy test`: case files and Rego tests."""

from __future__ import annotations

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import cases, defaults

KNOWN = "aa" * 32
READ = {
    "release.rego": defaults.read_default(defaults.RELEASE_ID),
    "attestation.rego": defaults.read_default(defaults.ATTESTATION_ID),
}


def run(text: str) -> list[tuple[str, str]]:
    return [(result.outcome, " ".join(result.why)) for result in cases.run_cases("t.yaml", text, READ.__getitem__)]


def case(
    expect: str, *, evidence: str = f"{{sgx: {{body: {{mr_enclave: {KNOWN}}}}}}}", more: str = "request: default/key/one"
) -> str:
    return f"""
policies: {{release: release.rego, attestation: attestation.rego}}
reference_values: {{sgx_mr_enclave: [{KNOWN}]}}
cases:
- name: it
  evidence: {evidence}
  expect: {expect}
  {more}
"""


def test_what_is_left_out_is_of_a_good_platform() -> None:
    assert run(case("{allow: true, status: affirming, vector: {executables: 3, hardware: 2}}")) == [("pass", "")]
    assert run(case("{allow: true}", more="complete: false\n  request: a/b/c"))[0][0] == "fail"


@pytest.mark.parametrize(
    ("evidence", "expect"),
    [
        ("{sgx: {}}", "{allow: false, code: measurement-unknown, reasons: [sgx.body.mr_enclave]}"),
        (
            f"{{sgx: {{body: {{mr_enclave: {KNOWN}}}, tcb_status: OutOfDate}}}}",
            "{allow: false, code: tcb-refused, vector: {hardware: 32}}",
        ),
        ("{sample: {}}", "{allow: false, status: contraindicated}"),
    ],
)
def test_denials(evidence: str, expect: str) -> None:
    assert run(case(expect, evidence=evidence)) == [("pass", "")]
    assert run(case("{allow: true}", evidence=evidence))[0][0] == "fail"


def test_a_failure_says_what_differs() -> None:
    ((outcome, why),) = run(case("{allow: true, vector: {executables: 3}}", evidence="{sgx: {}}"))
    assert outcome == "fail"
    assert "allow is false, expected true" in why
    assert "sgx.body.mr_enclave" in why
    assert "executables is 33, expected 3" in why
    assert "no reason names sgx.tcb_status" in run(case("{reasons: [sgx.tcb_status]}", evidence="{sgx: {}}"))[0][1]


def test_own_reference_values_come_first() -> None:
    assert run(case("{allow: false}", more="request: a/b/c\n  reference_values: {sgx_mr_enclave: []}")) == [("pass", "")]


def test_tokens() -> None:
    token = '{submods: {cpu0: {"ear.status": affirming}}}'
    assert run(f"policy: release.rego\ncases:\n- {{token: {token}, request: a/b/c, expect: {{allow: true}}}}\n") == [("pass", "")]


def test_policies_that_fail() -> None:
    READ["broken.rego"] = "package policy\nimport rego.v1\nallow := true if input.submods\nallow := false if input.x\n"
    text = "policy: broken.rego\ncases:\n- {token: {submods: {}, x: 1}, request: a/b/c, expect: {%s}}\n"
    assert run(text % "error: true") == [("pass", "")]
    assert run(text % "allow: true")[0][0] == "error"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "cases: []",
        "cases: [5]",
        "cases: [{}]",
        "cases: [{evidence: {}, expect: {}}]",
        "cases: [{expect: {allow: true}}]",
        "cases: [{evidence: {}, expect: {allwo: true}}]",
        "cases: [{evidence: {}, expect: {allow: true}, x: 1}]",
        "cases: [{token: 5, expect: {allow: true}}]",
        "policies: {realise: x}\ncases: [{}]",
        "reference_values: 5\ncases: [{evidence: {}, expect: {allow: true}}]",
        "a: &a [1]\ncases: [*a]",
        "cases: !!python/object:os.system {}",
        "cases: [2026-01-01]",
        "\x00",
        "{" * 3000,
    ],
)
def test_files_of_another_form(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        run(text)
    assert refused.value.code == "usage"


REGO_TEST = """package policy_test
import rego.v1
import data.policy
known := {"sgx": {"body": {"mr_enclave": "aa"}}}
test_known if policy.executables == 3 with input as known with data.reference_values as {"sgx_mr_enclave": ["aa"]}
test_unknown if policy.executables == 33 with input as known
test_shared if policy.executables == 3 with input as {"sgx": {"body": {"mr_enclave": "bb"}}}
test_wrong if policy.hardware == 2 with input as known
todo_test_later if false
"""


def test_rego_tests() -> None:
    files = {"p.rego": READ["attestation.rego"], "p_test.rego": REGO_TEST}
    found = {
        result.name.rsplit(".", 1)[1]: result for result in cases.run_rego(files, {"reference_values": {"sgx_mr_enclave": ["bb"]}})
    }
    assert {name: result.outcome for name, result in found.items()} == {
        "test_known": "pass",
        "test_unknown": "pass",
        "test_shared": "pass",
        "test_wrong": "fail",
    }
    assert found["test_wrong"].why == ("undefined",)
    (one,) = cases.run_rego(files, {}, wanted=lambda name: name.endswith("test_known"))
    assert one.outcome == "pass"


def test_rego_tests_that_do_not_parse() -> None:
    with pytest.raises(UsageError) as refused:
        list(cases.run_rego({"p_test.rego": "package x\ntest_a {"}, {}))
    assert refused.value.code == "policy-invalid"
