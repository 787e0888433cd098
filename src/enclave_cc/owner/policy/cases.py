"""`policy test`: cases in YAML or JSON, and Rego tests as OPA runs them.

A case file:

    policy: release.rego            # beside the file; or `policies: {attestation: FILE, release: FILE}`
    reference_values: {sgx_mr_enclave: ["aa.."]}
    cases:
      - name: a known enclave gets its key
        evidence: {sgx: {body: {mr_enclave: "aa.."}}}     # what is left out is that of a good platform
        request: default/key/one                          # a release is asked; `query:` beside it
        expect: {allow: true}

`expect` may name: `allow`; `code` (what the client sees); `reasons` (claims that the reason tree must name); `status`,
`vector` (a part of it) of the attestation; `error` (the policy fails). Instead of `evidence`, `token` gives the claims of
an attestation token. A case's own `reference_values` come before the file's.

Rego tests are the rules `test_*` of files named `*_test.rego`: true passes, anything else fails (openpolicyagent.org,
"Policy testing"). Beside them all other .rego files of the directory are loaded, and `data.json` or `data.yaml`. Reference
values are `data.reference_values`, so that `with data.reference_values as {...}` sets them for one test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import regorus
import yaml

from enclave_cc.errors import UsageError, foreign
from enclave_cc.owner.policy import appraisal, defaults, layout, lint, rego, release, syntax
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.reference.values import FixedReferences
from enclave_cc.record import record

PASS, FAIL, ERROR = "pass", "fail", "error"
_CASE_MEMBERS = {"name", "evidence", "token", "complete", "request", "query", "reference_values", "expect"}
_EXPECTED = {"allow", "code", "reasons", "status", "vector", "error"}
_MAX_CASES = 10_000

_LOOKUP_MODULE = """package policy
query_reference_value(name) := object.get(object.get(data, "reference_values", {}), name, null)
"""


@record
class Result:
    """One test. `why` says what differed; empty for one that passed."""

    name: str
    outcome: str
    why: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "outcome": self.outcome, "why": list(self.why)}


def run_cases(name: str, text: str, read: Callable[[str], str]) -> Iterator[Result]:
    """The cases of a file; `read` gives the text of a policy that it names. Raises `UsageError("usage")` for a file of
    another form, `UsageError("policy-invalid")` for a policy that does not compile."""
    document = _load(name, text)
    attestation, release_policy = _read_policies(name, document, read)
    cases = document.get("cases")
    if not isinstance(cases, list) or not cases or len(cases) > _MAX_CASES:
        raise UsageError("usage", f"{name} has no list of cases", "See docs/guides/policies.md for the form.")
    for number, case in enumerate(cases, 1):
        label = f"{name}: {case.get('name', f'case {number}') if isinstance(case, Mapping) else f'case {number}'}"
        _check_members(label, case, _CASE_MEMBERS)
        shared, own = document.get("reference_values", {}), case.get("reference_values", {})
        if not isinstance(shared, Mapping) or not isinstance(own, Mapping):
            raise UsageError("usage", f"{label}: reference_values is no mapping of names to values")
        yield _run_case(label, case, attestation, release_policy, FixedReferences.of_plain({**shared, **own}))


def _read_policies(name: str, document: Mapping[str, Any], read: Callable[[str], str]) -> tuple[rego.Policy, rego.Policy]:
    """(attestation, release): those that the file names, the defaults for the others."""
    _check_members(name, document, {"policy", "policies", "reference_values", "cases"})
    files = dict(document.get("policies") or {})
    if isinstance(document.get("policy"), str):
        text = read(document["policy"])
        kind = lint.RELEASE if "allow" in syntax.parse(document["policy"], text).names else lint.ATTESTATION
        files[kind] = document["policy"]
    if not set(files) <= {lint.ATTESTATION, lint.RELEASE} or not all(isinstance(each, str) for each in files.values()):
        raise UsageError("usage", f"{name}: policies are `attestation` and `release`, each a file")
    made = []
    for kind, policy_id in ((lint.ATTESTATION, defaults.ATTESTATION_ID), (lint.RELEASE, defaults.RELEASE_ID)):
        made.append(
            rego.Policy(files[kind], read(files[kind]))
            if kind in files
            else rego.Policy(policy_id, defaults.read_default(policy_id))
        )
    return made[0], made[1]


def _run_case(
    label: str, case: Mapping[str, Any], attestation: rego.Policy, release_policy: rego.Policy, references: FixedReferences
) -> Result:
    expect = case.get("expect")
    _check_members(f"{label}, expect", expect, _EXPECTED)
    if not isinstance(expect, Mapping) or not expect:
        raise UsageError("usage", f"{label} expects nothing")
    found: dict[str, Any] = {}
    try:
        if "token" in case:
            claims = case["token"]
            if not isinstance(claims, Mapping):
                raise UsageError("usage", f"{label}: a token is an object of claims")
        else:
            judged = appraisal.appraise(attestation, _complete(label, case), references)
            found |= {"status": judged.status, "vector": dict(judged.vector)}
            claims = {"submods": {"cpu0": judged.to_submod()}}
        if "request" in case:
            segments = tuple(str(case["request"]).strip("/").split("/"))
            request = release.Request("resource", segments, case.get("query") or {})
            verdict = release.decide(release_policy, claims, request, references, appraiser=lambda _class: attestation)
            found["allow"] = isinstance(verdict, release.Permit)
            if isinstance(verdict, release.Denial):
                found |= {"code": verdict.code, "reasons": sorted(set(_claims(verdict.reasons)))}
    except UsageError as error:
        if error.code != "policy-invalid":
            raise
        found = {"error": error.what}
    differences = tuple(_compare(expect, found))
    outcome = PASS if not differences else ERROR if "error" in found else FAIL
    return Result(label, outcome, differences)


def _complete(label: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """The case's evidence, with what it leaves out of `sgx` as on a good platform."""
    evidence = case.get("evidence")
    if not isinstance(evidence, Mapping):
        raise UsageError("usage", f"{label} has neither evidence nor token")
    if not case.get("complete", True):
        return dict(evidence)
    base: dict[str, Any] = {
        "report_data": "00" * 64,
        "runtime_data_claims": {"additional-evidence": "", "nonce": "", "tee-pubkey": {}},
    }
    for tee, tree in (("sgx", layout.SGX), ("sample", layout.SAMPLE)):
        if tee in evidence:
            base[tee] = layout.example(tree)
    return _merge(base, evidence)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _claims(reasons: Sequence[Reason]) -> Iterator[str]:
    for reason in reasons:
        yield reason.claim
        yield from _claims(reason.because)


def _compare(expect: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    if "error" in found and "error" not in expect:
        yield f"the policy fails: {found['error']}"
        return
    for name, wanted in expect.items():
        have = found.get(name)
        if name == "vector":
            for claim, value in wanted.items() if isinstance(wanted, Mapping) else ():
                if (have or {}).get(claim) != value:
                    yield f"{claim} is {(have or {}).get(claim)}, expected {value}"
        elif name == "reasons":
            missing = [claim for claim in wanted if claim not in (have or [])]
            if missing:
                yield f"no reason names {', '.join(map(str, missing))}; named are {', '.join(have or []) or 'none'}"
        elif name == "error":
            if (have is not None) != bool(wanted):
                yield "the policy was expected to fail" if wanted else f"the policy fails: {have}"
        elif have != wanted:
            more = f" (reasons: {', '.join(found['reasons'])})" if name in ("allow", "code") and found.get("reasons") else ""
            yield f"{name} is {json.dumps(have)}, expected {json.dumps(wanted)}{more}"


def run_rego(
    files: Mapping[str, str], data: Mapping[str, Any], *, wanted: Callable[[str], bool] = lambda _name: True
) -> Iterator[Result]:
    """The rules `test_*` of the `*_test.rego` among `files` (name to text). Raises `UsageError("policy-invalid")`."""
    for name, text in files.items():
        syntax.parse(name, text)
    engine = regorus.Engine()
    for name, text in files.items():
        engine.add_policy(name, text)
    if not any(lint.QUERY in syntax.parse(name, text).names for name, text in files.items()):
        engine.add_policy("reference_values.rego", _LOOKUP_MODULE)
    engine.add_data_json(json.dumps({**{"reference_values": {}}, **data}))
    engine.set_input_json("{}")
    for name, text in files.items():
        if not name.endswith("_test.rego"):
            continue
        module = syntax.parse(name, text)
        for rule in sorted(each for each in module.names if each.startswith("test_")):
            path = f"data.{module.package}.{rule}"
            if wanted(path):
                yield _run_rego_test(engine, name, path)


def _run_rego_test(engine: Any, name: str, path: str) -> Result:
    label = f"{name}: {path}"
    try:
        # As JSON: Python cannot hold a set of objects.
        found = json.loads(engine.clone().eval_query_as_json(path)).get("result")
    except RuntimeError as error:
        return Result(label, ERROR, (syntax.describe_fault(error),))
    value = found[0]["expressions"][0]["value"] if found else None
    return (
        Result(label, PASS) if value is True else Result(label, FAIL, ("undefined" if not found else f"gave {json.dumps(value)}",))
    )


def load_data(name: str, text: str) -> Mapping[str, Any]:
    """A `data.json` or `data.yaml`. Raises `UsageError("usage")`."""
    return _load(name, text)


def _load(name: str, text: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
        json.dumps(document, allow_nan=False)  # YAML knows dates and sets, policies do not
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageError("usage", f"{name} is neither YAML nor JSON of plain values: {foreign(error)}") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise UsageError("usage", f"{name} is no mapping")
    return document


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Without aliases: nine lines of them can stand for a billion."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken here")
        return super().compose_node(parent, index)


def _check_members(label: str, value: object, known: set[str]) -> None:
    if not isinstance(value, Mapping):
        raise UsageError("usage", f"{label} is no mapping", "See docs/guides/policies.md for the form.")
    for name in value:
        if name not in known:
            raise UsageError("usage", f"{label}: there is no {foreign(name)!r}; known are {', '.join(sorted(known))}")
