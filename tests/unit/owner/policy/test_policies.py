"""Default policies, upstream's form of policies, and the reasons of a denial."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.owner.policy import appraisal, defaults, rego, release
from enclave_cc.owner.reference.values import ReferenceValue, combine
from enclave_cc.wire.rcar import token

MR_ENCLAVE, MR_SIGNER = "aa" * 32, "bb" * 32
ATTESTATION = rego.Policy("default_cpu", defaults.read_default(defaults.ATTESTATION_ID))
RELEASE = rego.Policy("resource-policy", defaults.read_default(defaults.RELEASE_ID), 3)
REQUEST = release.Request("resource", ("default", "key", "1"))


class References:
    def __init__(self, **names: list[Any]) -> None:
        self._names = {
            name: [item if isinstance(item, ReferenceValue) else ReferenceValue(name, item) for item in items]
            for name, items in names.items()
        }

    def entries(self, name: str) -> list[ReferenceValue]:
        return self._names.get(name, [])

    def history(self, name: str) -> list[ReferenceValue]:
        return self.entries(name)

    def query(self, name: str) -> Any:
        return combine(self.entries(name))


def evidence(*, flags: str = "0500000000000000", status: str = "UpToDate", svn: str = "0300", **body: str) -> dict[str, Any]:
    full = {
        "mr_enclave": MR_ENCLAVE,
        "mr_signer": MR_SIGNER,
        "isv_prod_id": "0100",
        "isv_svn": svn,
        "attributes.flags": flags,
        **body,
    }
    return {"sgx": {"body": full, "tcb_status": status, "collateral_expiration_status": "0"}}


KNOWN = References(sgx_mr_enclave=[MR_ENCLAVE])


def judge(claims: Mapping[str, Any], references: References = KNOWN) -> appraisal.Appraisal:
    return appraisal.appraise(ATTESTATION, claims, references)


def ask(
    *appraisals: appraisal.Appraisal, references: References = KNOWN, policy: rego.Policy = RELEASE
) -> release.Permit | release.Denial:
    return release.decide(
        policy, {"submods": {f"cpu{n}": each.to_submod() for n, each in enumerate(appraisals)}}, REQUEST, references
    )


def test_a_known_enclave_on_a_good_platform() -> None:
    good = judge(evidence())
    assert good.status == "affirming"
    assert {name: value for name, value in good.vector.items() if value} == {"executables": 3, "hardware": 2, "configuration": 2}
    assert isinstance(ask(good), release.Permit)


@pytest.mark.parametrize(
    ("claims", "claim", "value", "code"),
    [
        (evidence(mr_enclave="ab" * 32), "executables", 33, "measurement-unknown"),
        (evidence(flags="0700000000000000"), "configuration", 36, "debug-enclave"),
        (evidence(flags="8700000000000000"), "configuration", 36, "debug-enclave"),
        (evidence(status="OutOfDate"), "hardware", 32, "tcb-refused"),
        (evidence(status="ConfigurationNeeded"), "hardware", 32, "tcb-refused"),
    ],
)
def test_what_the_default_policy_denies(claims: dict[str, Any], claim: str, value: int, code: str) -> None:
    bad = judge(claims)
    assert bad.vector[claim] == value
    assert bad.status != "affirming"
    denial = ask(bad)
    assert isinstance(denial, release.Denial)
    assert denial.code == code
    (root,) = denial.reasons
    assert root.because[0].claim == f"submods.cpu0.{claim}"
    assert root.because[0].because[0].code == code


@pytest.mark.parametrize("flags", ["0500000000000000", "0400000000000000", "8500000000000000", "2500000000000000"])
def test_other_flags_are_no_debug(flags: str) -> None:
    assert judge(evidence(flags=flags)).vector["configuration"] == 2


def test_tcb_statuses_are_the_owners_choice() -> None:
    references = References(sgx_mr_enclave=[MR_ENCLAVE], sgx_tcb_status=["ConfigurationNeeded"])
    assert judge(evidence(status="ConfigurationNeeded"), references).status == "affirming"
    assert judge(evidence(status="UpToDate"), references).vector["hardware"] == 32
    assert judge(evidence(status="SWHardeningNeeded")).status == "affirming"


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"svn": "0203"}, True),
        ({"svn": "0200"}, False),
        ({"isv_prod_id": "0001"}, False),
        ({"mr_signer": "cc" * 32}, False),
    ],
)
def test_by_signer_product_and_svn(change: dict[str, str], accepted: bool) -> None:
    references = References(sgx_mr_signer=[{"mr_signer": MR_SIGNER, "isv_prod_id": 1, "min_isv_svn": 3}])
    assert (judge(evidence(**change), references).status == "affirming") is accepted  # type: ignore[arg-type]


def test_every_submodule_must_be_affirming() -> None:
    good, bad = judge(evidence()), judge(evidence(status="OutOfDate"))
    assert isinstance(ask(good, good), release.Permit)
    assert isinstance(ask(good, bad), release.Denial)
    assert isinstance(ask(), release.Denial)


def test_sample_evidence_is_judged_by_its_own_reference_values() -> None:
    claims = {"sample": {"svn": "1", "launch_digest": "abcde", "debug": False}}
    assert judge(claims).status == "contraindicated"
    assert judge(claims, References(svn=["1"], launch_digest=["abcde"])).status == "affirming"


def test_reasons_name_the_nearest_measurement() -> None:
    source = {"mr_signer": MR_SIGNER, "isv_prod_id": 1, "isv_svn": 3, "bundle": "agent"}
    references = References(sgx_mr_enclave=["cc" * 32, ReferenceValue("sgx_mr_enclave", "dd" * 32, source=source)])
    denial = ask(judge(evidence(), references), references=references)
    assert isinstance(denial, release.Denial)
    reason = denial.reasons[0].because[0].because[0]
    assert reason.nearest == {"value": "dd" * 32, "how": "another build of the same product and signer", "source": source}
    assert reason.expected == ["cc" * 32, "dd" * 32]
    unrelated = References(sgx_mr_enclave=["cc" * 32, "aa" * 31 + "ab"])
    denial = ask(judge(evidence(), unrelated), references=unrelated)
    assert isinstance(denial, release.Denial)
    assert denial.reasons[0].because[0].because[0].nearest is None  # digests that look alike have nothing in common
    tree = denial.reasons[0].to_json()
    assert tree["because"][0]["because"][0]["found"] == MR_ENCLAVE
    assert "version 3" in tree["rule"]


def test_a_reference_value_that_is_not_set_is_named() -> None:
    denial = ask(judge(evidence(mr_enclave="ab" * 32)))
    assert isinstance(denial, release.Denial)
    first, second = denial.reasons[0].because[0].because
    assert (first.claim, first.command) == ("sgx.body.mr_enclave", "enclave-cc refvals add BUNDLE")
    assert (second.claim, second.found) == ("reference value sgx_mr_signer", None)
    assert "--by-signer" in second.command


def test_a_policy_that_says_no_to_good_evidence_gives_no_claim_away() -> None:
    denial = ask(judge(evidence()), policy=rego.Policy("p", "package policy\nimport rego.v1\ndefault allow := false\n"))
    assert isinstance(denial, release.Denial)
    assert (denial.code, denial.reasons[0].because) == ("kbs-denied", ())
    assert "policy itself" in denial.reasons[0].advice


@pytest.mark.parametrize("value", ["false", "1", '"true"', "{}", "null"])
def test_only_true_allows(value: str) -> None:
    policy = rego.Policy("p", f"package policy\nallow := {value}\n")
    assert isinstance(ask(judge(evidence()), policy=policy), release.Denial)


# The forms in which upstream's sample policies are written: v0 defaults, `not` over a missing path, `plugin = data.plugin`.
UPSTREAM_STYLE = """package policy

default allow = false

plugin = data.plugin

allow if {
	plugin == "resource"
	data["resource-path"][0] == "default"
	not input["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["sample"]
}
"""


def test_policies_in_upstreams_style() -> None:
    policy = rego.Policy("resource-policy", UPSTREAM_STYLE)
    assert isinstance(ask(judge(evidence()), policy=policy), release.Permit)
    sample = judge({"sample": {"svn": "1"}})
    assert isinstance(ask(sample, policy=policy), release.Denial)
    other = release.Request("resource", ("other", "key", "1"), {"x": "y"})
    assert isinstance(release.decide(policy, {"submods": {}}, other, KNOWN), release.Denial)


def test_extensions_become_members_of_the_submodule() -> None:
    text = """package policy
import rego.v1
trust_claims := {"executables": 3}
extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"validated": query_reference_value("x")}}]
"""
    judged = appraisal.appraise(rego.Policy("default_cpu", text), {}, References(x=[1]))
    assert judged.to_submod()["ear.trustee.identifiers"] == {"validated": [1]}
    assert judged.to_submod()[token.POLICY_ID] == "default"


@pytest.mark.parametrize(
    "text",
    [
        "trust_claims := 5",
        "x := 5",
        'trust_claims := {"hardware": 0}',
        'trust_claims := {"hardware": 200}',
        'trust_claims := {"hardware": 2.5}',
        'trust_claims := {"hardware": true}',
        'trust_claims := {"nonsense": 2}',
        'trust_claims := {"hardware": 2}\nextensions := 5',
        'trust_claims := {"hardware": 2}\nextensions := [{"name": "ear.status", "value": "affirming"}]',
    ],
)
def test_attestation_policies_that_give_no_vector(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        appraisal.appraise(rego.Policy("default_cpu", f"package policy\n{text}\n"), {}, References())
    assert refused.value.code == "policy-invalid"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "package"),
        ("package other\nallow := true", "package policy"),
        ("package policy\nallow if {", ":2:"),
        ("package policy\nallow if { nonsense(1) }", "nonsense"),
        ("package policy\n" + "#" * rego.MAX_TEXT, "longer"),
    ],
)
def test_policies_that_do_not_compile(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        rego.Policy("p.rego", text)
    assert refused.value.code == "policy-invalid"
    assert says in refused.value.what
    assert "Stack backtrace" not in refused.value.what


def test_a_policy_that_contradicts_itself_is_an_error_not_an_answer() -> None:
    policy = rego.Policy("p", "package policy\nimport rego.v1\nallow := true if input.a\nallow := false if input.b\n")
    assert rego.evaluate(policy, ("data.policy.allow",), {"a": 1}).values["data.policy.allow"] is True
    with pytest.raises(UsageError):
        rego.evaluate(policy, ("data.policy.allow",), {"a": 1, "b": 1})


def test_claims_that_are_no_text_fail_the_policy_and_nothing_else() -> None:
    policy = rego.Policy("p", "package policy\nallow := true\n")
    with pytest.raises(UsageError) as refused:
        rego.evaluate(policy, ("data.policy.allow",), {"a": "\ud800"})
    assert refused.value.code == "policy-invalid"
    assert rego.evaluate(policy, ("data.policy.allow",), {}).values["data.policy.allow"] is True


def test_evaluations_of_many_threads_do_not_mix() -> None:
    policy = rego.Policy("p", 'package policy\nx := [input.n, data.n, query_reference_value("n")]\n')
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(50):
            got = rego.evaluate(policy, ("data.policy.x",), {"n": number}, data={"n": number}, lookup=lambda _name: number)
            if got.values["data.policy.x"] != [number] * 3 or got.queried != {"n": number}:
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
