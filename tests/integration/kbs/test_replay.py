"""`policy replay` against a real KBS: what another policy, a retired measurement, a later date or a TCB recovery would
change, before it does; and that nothing changes by asking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.simulator.platform import Condition
from enclave_cc.simulator.platform import Platform as SimulatedMachine

GOOD, LATER = bytes(range(32)).hex(), "1d" * 32
ONE, TWO = "default/image-key/one", "default/image-key/two"
HEAD = "package policy\nimport rego.v1\ndefault allow := false\n"


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, new_kbs: Callable[..., Any], machine: SimulatedMachine, enclave: Any
) -> Iterator[Any]:
    """A KBS that released ONE and TWO to one enclave, and refused another."""
    from .conftest import EnclavePlatform, make_identity  # type: ignore[import-not-found]

    kbs = new_kbs(tmp_path_factory.mktemp("replay"), machine)
    for path in (ONE, TWO):
        kbs.admin.set_resource(path, b"CANARY-of-the-resource")
    client = kbs.client(enclave)
    for path in (ONE, TWO, ONE):
        client.get(f"kbs:///{path}")
    other = kbs.client(EnclavePlatform(machine, make_identity(mr_enclave=bytes.fromhex(LATER))))
    with pytest.raises(EnclaveCcError):
        other.get(f"kbs:///{ONE}")
    yield kbs
    for each in kbs.clients:
        each.close()
    assert kbs.stop() == 0


def replay(kbs: Any, *words: str) -> tuple[int, dict[str, Any]]:
    done = kbs.cli("policy", "replay", "--json", *words, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def changes(report: dict[str, Any]) -> set[tuple[str, str, str, str, int]]:
    return {(each["stage"], each["what"][:75], each["before"], each["after"], each["count"]) for each in report["changes"]}


def test_nothing_changes_by_itself(recorded: Any) -> None:
    code, report = replay(recorded)
    assert (code, report["changes"], report["skipped"]) == (0, [], 0)
    assert report["judged"] >= 6
    assert "0 would change" in recorded.cli("policy", "replay").stdout


def test_a_policy_that_gives_less(recorded: Any, tmp_path: Path) -> None:
    text = recorded.admin.get_policy("release")["text"]
    narrower = HEAD + 'allow if {\n\tdata["resource-path"][2] == "two"\n\tinput.submods.cpu0["ear.status"] == "affirming"\n}\n'
    (tmp_path / "p.rego").write_text(narrower)
    code, report = replay(recorded, "--policy", f"release={tmp_path / 'p.rego'}")
    assert code == 1
    assert ("release", ONE, "allow", "deny", 2) in changes(report)
    assert not [each for each in report["changes"] if each["what"] == TWO]
    (change,) = [each for each in report["changes"] if each["before"] == "allow"]
    reason = change["reasons"][0]["because"][0]
    assert (reason["claim"], reason["found"], reason["expected"]) == ("data.resource-path.*", "one", "two")
    assert reason["place"]["line"] == 5
    shown = recorded.cli("policy", "replay", "-v", "--policy", f"release={tmp_path / 'p.rego'}", check=False)
    assert "allow -> deny" in shown.stdout
    assert "line 5" in shown.stdout
    assert recorded.admin.get_policy("release")["text"] == text  # asking changes nothing


def test_a_policy_that_gives_more(recorded: Any, tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(HEAD + "allow if count(input.submods) > 0\n")
    code, report = replay(recorded, "--policy", f"release={tmp_path / 'p.rego'}")
    assert (code, changes(report)) == (1, {("release", ONE, "deny", "allow", 1)})


def test_another_attestation_policy(recorded: Any, tmp_path: Path) -> None:
    stricter = recorded.admin.get_policy("attestation")["text"].replace(
        "input.sgx.tcb_status in", "input.sgx.tcb_eval_num > 9000\n\tinput.sgx.tcb_status in"
    )
    (tmp_path / "p.rego").write_text(stricter)
    code, report = replay(recorded, "--policy", f"attestation={tmp_path / 'p.rego'}")
    assert code == 1
    assert ("release", TWO, "allow", "deny", 1) in changes(report)
    (change,) = [each for each in report["changes"] if each["what"] == TWO]
    reason = change["reasons"][0]["because"][0]["because"][0]
    assert (reason["claim"], reason["expected"]) == ("sgx.tcb_eval_num", "more than 9000")


def test_a_policy_of_one_path(recorded: Any, tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(HEAD)
    code, report = replay(recorded, "--policy", f"resource-policy/{TWO}={tmp_path / 'p.rego'}")
    assert (code, changes(report)) == (1, {("release", TWO, "allow", "deny", 1)})


def test_a_policy_that_does_not_compile(recorded: Any, tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text("package policy\nallow if {")
    assert recorded.cli("policy", "replay", "--policy", f"release={tmp_path / 'p.rego'}", check=False).returncode == 19


def test_a_measurement_that_is_retired(recorded: Any) -> None:
    code, report = replay(recorded, "--retire", f"sgx_mr_enclave={GOOD}")
    found = changes(report)
    assert code == 1
    assert {("release", ONE, "allow", "deny", 2), ("release", TWO, "allow", "deny", 1)} <= found
    assert ("attest", f"mr_enclave {GOOD}", "affirming", "warning", 1) in found
    (change,) = [each for each in report["changes"] if each["what"] == TWO]
    assert change["code"] == "measurement-unknown"
    assert "retired" in json.dumps(change["reasons"])
    assert recorded.cli("policy", "replay", "--retire", "sgx_mr_enclave=ff", check=False).returncode == 3


def test_other_reference_values(recorded: Any, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps([ReferenceValue("sgx_mr_enclave", LATER).to_json()]))
    _, report = replay(recorded, "--refvals", str(tmp_path / "v.json"))
    assert ("release", ONE, "deny", "allow", 1) in changes(report)
    assert ("release", TWO, "allow", "deny", 1) in changes(report)


def test_values_that_will_have_expired(recorded: Any, tmp_path: Path) -> None:
    end = int(time.time()) + 1000
    (tmp_path / "v.json").write_text(json.dumps([ReferenceValue("sgx_mr_enclave", GOOD, expires=end).to_json()]))
    assert replay(recorded, "--refvals", str(tmp_path / "v.json"))[0] == 0
    code, report = replay(recorded, "--refvals", str(tmp_path / "v.json"), "--at", str(end + 1))
    assert code == 1
    assert ("release", TWO, "allow", "deny", 1) in changes(report)


def test_a_date_when_the_collateral_has_expired(recorded: Any) -> None:
    assert replay(recorded, "--at", str(int(time.time()) + 60))[0] == 0
    code, report = replay(recorded, "--at", str(int(time.time()) + 10 * 365 * 24 * 3600))
    assert code == 1
    assert {each["code"] for each in report["changes"] if each["before"] in ("allow", "affirming")} == {"collateral-refused"}


def test_a_tcb_recovery_before_it_comes(recorded: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    """The quotes themselves are verified again, by the collateral that Intel would publish."""
    for name, condition, code in (
        ("late", Condition(tcb_status="OutOfDate", advisory_ids=("INTEL-SA-00001",)), "tcb-refused"),
        ("gone", Condition(tcb_status="Revoked"), "tcb-refused"),
        ("pck", Condition(pck_revoked=True), "quote-refused"),
    ):
        (tmp_path / name).write_bytes(machine.collateral(int(time.time()), condition).encode())
        exit_code, report = replay(recorded, "--collateral", str(tmp_path / name))
        assert exit_code == 1
        (change,) = [each for each in report["changes"] if each["what"] == TWO]
        assert (change["after"], change["code"]) == ("deny", code), name
    (tmp_path / "fresh").write_bytes(machine.collateral(int(time.time())).encode())
    assert replay(recorded, "--collateral", str(tmp_path / "fresh"))[0] == 0


def test_an_export_is_judged_without_the_kbs(recorded: Any, tmp_path: Path) -> None:
    export = tmp_path / "recordings.jsonl"
    assert "recordings" in recorded.cli("policy", "replay", "--export", str(export)).stdout
    assert export.stat().st_mode & 0o777 == 0o600
    for words in (("--retire", f"sgx_mr_enclave={GOOD}"), (), ("--at", str(int(time.time()) + 10 * 365 * 24 * 3600))):
        here = replay(recorded, "--recording", str(export), *words)
        there = replay(recorded, *words)
        assert (here[0], changes(here[1]), here[1]["judged"]) == (there[0], changes(there[1]), there[1]["judged"])
    assert b"CANARY" not in export.read_bytes()
    export.write_text("{}\n")
    assert recorded.cli("policy", "replay", "--recording", str(export), check=False).returncode == 2


def test_no_secret_is_recorded(recorded: Any, enclave: Any) -> None:
    everything = json.dumps(recorded.admin.list_recordings(limit=1000))
    assert GOOD in everything
    assert "CANARY" not in everything
    keys = [recorded.directory / name for name in ("token.key", "store.key", "admin.key", "tls.key")]
    for key in (path for path in keys if path.exists()):
        assert key.read_text().splitlines()[1 if "BEGIN" in key.read_text() else 0] not in everything
    assert "eyJhbGciOi" not in everything  # no token


def test_since(recorded: Any) -> None:
    assert replay(recorded, "--since", str(int(time.time()) + 1000))[1]["judged"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"limit":0}',
        b'{"limit":1001}',
        b'{"after":-1}',
        b'{"at":"now"}',
        b'{"policies":[]}',
        b'{"policies":{"x y":"package policy"}}',
        b'{"policies":{"resource-policy":5}}',
        b'{"reference_values":{}}',
        b'{"reference_values":[5]}',
        b'{"retire":5}',
        b'{"collateral":["{}"]}',
        b'{"collateral":[5]}',
    ],
)
def test_broken_requests(recorded: Any, body: bytes) -> None:
    with pytest.raises(EnclaveCcError) as refused:
        recorded.admin._request("POST", "admin/replay", body)
    assert refused.value.code in ("malformed", "usage", "collateral-refused")
