"""Every kind of denial names its claim to the owner, and its command cures it; host and client see an id and a code.

A real KBS, one per test that would disturb others.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs import admin
from enclave_cc.owner.kbs.roots import RootStore, StoredCollateral
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from enclave_cc.simulator.platform import Condition
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.transport.https import HttpsClient
from enclave_cc.wire.rcar import binding, messages
from enclave_cc.wire.rcar.initdata import InitData

PATH = "default/image-key/one"
URI = f"kbs:///{PATH}"
VALUE = b"CANARY-value"
NOTE = "CANARY-note-of-the-owner"
GOOD = bytes(range(32)).hex()
HEAD = "package policy\nimport rego.v1\ndefault allow := false\n"
INIT_DATA = b'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"x" = "1"\n'
DAY = 24 * 3600


@pytest.fixture
def own(tmp_path: Path, new_kbs: Callable[..., Any], machine: SimulatedMachine) -> Iterator[Any]:
    made = new_kbs(tmp_path, machine)
    made.admin.set_resource(PATH, VALUE)
    yield made
    for client in made.clients:
        client.close()
    assert made.stop() == 0


class Denial:
    """A refusal as the client saw it, and as the owner does."""

    def __init__(self, kbs: Any, error: EnclaveCcError) -> None:
        self.code = error.code
        self.id = error.what.rsplit("id ", 1)[-1]
        self.decision = kbs.admin.explain(self.id)
        self.shown = kbs.cli("explain", self.id).stdout
        # Neither what was expected nor why: an id and a code.
        assert str(error.what).startswith("the KBS") or "denied" in error.what
        for secret in (GOOD, NOTE, "CANARY", "image-key/one/", "sgx_mr_enclave"):
            assert secret not in error.what
            assert secret not in error.fix

    def reasons(self) -> Iterator[dict[str, Any]]:
        waiting = list(self.decision["reasons"])
        while waiting:
            reason = waiting.pop(0)
            yield reason
            waiting += reason.get("because", [])

    def reason(self, claim: str) -> dict[str, Any]:
        found = [reason for reason in self.reasons() if reason["claim"] == claim]
        assert found, f"{claim} is not in {[reason['claim'] for reason in self.reasons()]}"
        assert claim in self.shown
        return found[0]


def deny(kbs: Any, enclave: Any, uri: str = URI, **options: Any) -> Denial:
    with pytest.raises(EnclaveCcError) as refused:
        kbs.client(enclave, **options).get(uri)
    return Denial(kbs, refused.value)


def cure(kbs: Any, command: str, **places: str) -> None:
    """Runs a command as it was advised, with what stands for the owner's own files filled in."""
    words = [places.get(word, word) for word in shlex.split(command)]
    assert words.pop(0) == "enclave-cc"
    kbs.cli(*words)


def collateral_file(machine: SimulatedMachine, path: Path, at: float | None = None, condition: Condition | None = None) -> str:
    path.write_bytes(machine.collateral(int(at or time.time()), condition).encode())
    return str(path)


def set_collateral(kbs: Any, machine: SimulatedMachine, path: Path, **options: Any) -> None:
    root = path.with_suffix(".pem")
    root.write_text(machine.root_certificate_pem())
    kbs.cli(
        "kbs",
        "root",
        "add",
        "here",
        "--certificate",
        str(root),
        "--simulated",
        "--collateral",
        collateral_file(machine, path, **options),
    )


@contextlib.contextmanager
def stored_collateral(kbs: Any) -> Iterator[tuple[Database, RootStore, StoredCollateral]]:
    """The KBS's database beside the KBS, and the one collateral document in it."""
    database = open_database(DatabaseSettings(f"sqlite:{kbs.directory / 'kbs.db'}"), kbs.directory)
    try:
        roots = RootStore(database)
        (stored,) = roots.list_collateral("here")
        yield database, roots, stored
    finally:
        database.close()


# --- measurements


def test_an_unknown_measurement_is_cured_by_adding_its_bundle(own: Any, platform_of: Callable[..., Any], tmp_path: Path) -> None:
    other = platform_of(mr_enclave=bytes(32))
    denial = deny(own, other)
    reason = denial.reason("sgx.body.mr_enclave")
    assert (denial.code, reason["found"], reason["expected"]) == ("measurement-unknown", bytes(32).hex(), [GOOD])
    assert reason["place"]["policy"] == "default_cpu"
    assert reason["place"]["line"] > 1
    bundle = {"role": "agent", "mr_enclave": bytes(32).hex(), "mr_signer": "bb" * 32, "isv_prod_id": 1, "isv_svn": 3}
    (tmp_path / "reference.json").write_text(json.dumps(bundle))
    cure(own, reason["command"], BUNDLE=str(tmp_path))
    assert own.client(other).get(URI) == VALUE


def test_the_nearest_measurement(own: Any, platform_of: Callable[..., Any], enclave: Any) -> None:
    signer = enclave.identity.mr_signer.hex()
    source = {"mr_signer": signer, "isv_prod_id": 1, "isv_svn": 2, "bundle": "agent"}
    own.admin.add_reference_values([ReferenceValue("sgx_mr_enclave", "cc" * 32, source=source)])
    nearest = deny(own, platform_of(mr_enclave=bytes(32))).reason("sgx.body.mr_enclave")["nearest"]
    assert (nearest["value"], nearest["how"]) == ("cc" * 32, "another version of the same product and signer")


def test_a_retired_measurement_is_cured_by_taking_it_back(own: Any, enclave: Any) -> None:
    own.cli("refvals", "retire", "sgx_mr_enclave", GOOD, "--reason", NOTE)
    denial = deny(own, enclave)
    reason = denial.reason("sgx.body.mr_enclave")
    assert reason["nearest"]["how"] == "retired"
    assert NOTE in reason["advice"]
    assert "retired" in own.cli("refvals", "ls").stdout
    cure(own, reason["command"])
    assert own.client(enclave).get(URI) == VALUE


def test_an_expired_measurement(own: Any, enclave: Any, tmp_path: Path) -> None:
    own.admin.add_reference_values([ReferenceValue("sgx_mr_enclave", GOOD, expires=int(time.time()) - 10)])
    reason = deny(own, enclave).reason("sgx.body.mr_enclave")
    assert reason["nearest"]["how"] == "expired"
    bundle = {"role": "agent", "mr_enclave": GOOD, "mr_signer": "bb" * 32, "isv_prod_id": 1, "isv_svn": 3}
    (tmp_path / "reference.json").write_text(json.dumps(bundle))
    cure(own, reason["command"], BUNDLE=str(tmp_path), DATE="2099-01-01")
    assert own.client(enclave).get(URI) == VALUE


def test_an_svn_below_what_the_signer_must_have(own: Any, enclave: Any) -> None:
    signer = {"mr_signer": enclave.identity.mr_signer.hex(), "isv_prod_id": 1, "min_isv_svn": 9}
    own.admin.remove_reference_value("sgx_mr_enclave")
    own.admin.add_reference_values([ReferenceValue("sgx_mr_signer", signer)])
    reason = deny(own, enclave).reason("sgx.body.isv_svn")
    assert (reason["found"], reason["expected"]) == (3, "at least 9")
    assert "--by-signer" in reason["command"]
    own.cli("refvals", "set", "sgx_mr_signer", json.dumps({**signer, "min_isv_svn": 3}))
    assert own.client(enclave).get(URI) == VALUE


# --- platforms


def test_a_tcb_that_fell_behind_is_cured_by_accepting_it(own: Any, enclave: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    set_collateral(own, machine, tmp_path / "c", condition=Condition(tcb_status="OutOfDate", advisory_ids=("INTEL-SA-00001",)))
    denial = deny(own, enclave)
    reason = denial.reason("sgx.tcb_status")
    assert (denial.code, reason["found"]) == ("tcb-refused", "OutOfDate")
    assert reason["nearest"]["advisory_ids"] == ["INTEL-SA-00001"]
    assert reason["expected"] == ["UpToDate", "SWHardeningNeeded"]
    cure(own, reason["command"])
    assert own.client(enclave).get(URI) == VALUE


def test_a_revoked_tcb_says_which_level_is_needed(own: Any, enclave: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    set_collateral(own, machine, tmp_path / "c", condition=Condition(tcb_status="Revoked"))
    denial = deny(own, enclave)
    reason = denial.reason("sgx.tcb_status")
    assert denial.code == "tcb-refused"
    assert reason["found"]["status"] == "Revoked"
    assert len(reason["found"]["components"]) == 16


def test_expired_collateral_is_cured_by_fresh(own: Any, enclave: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    with stored_collateral(own) as (_, roots, stored):  # it was good when it was added
        old = machine.collateral(int(time.time()) - 400 * DAY).encode().decode()
        roots.set_collateral("here", stored.fmspc, stored.ca, old)
    denial = deny(own, enclave)
    assert denial.code == "collateral-refused"
    reason = denial.reason("sgx.collateral.tcb_info")
    assert reason["nearest"]["expired_seconds_ago"] > DAY
    assert "valid " in reason["found"]
    root = tmp_path / "root.pem"
    root.write_text(machine.root_certificate_pem())
    places = {"ROOT.pem": str(root), "COLLATERAL.json": collateral_file(machine, tmp_path / "fresh")}
    cure(own, reason["command"] + " --simulated", **places)
    assert own.client(enclave).get(URI) == VALUE


def test_no_collateral_for_the_platform(own: Any, enclave: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    with stored_collateral(own) as (database, roots, stored):
        with database.write() as db:
            db.execute("DELETE FROM collateral")
        roots.set_collateral("here", "00906ea10000", stored.ca, stored.document)
    reason = deny(own, enclave).reason("sgx.collateral")
    assert reason["expected"] == {"fmspc": stored.fmspc, "ca": stored.ca}
    assert reason["nearest"] == [{"fmspc": "00906ea10000", "ca": stored.ca}]
    root = tmp_path / "root.pem"
    root.write_text(machine.root_certificate_pem())
    places = {"ROOT.pem": str(root), "COLLATERAL.json": collateral_file(machine, tmp_path / "fresh")}
    cure(own, reason["command"] + " --simulated", **places)
    assert own.client(enclave).get(URI) == VALUE


def test_a_root_that_nobody_named_is_cured_by_naming_it(own: Any, platform_of: Callable[..., Any], tmp_path: Path) -> None:
    stranger = SimulatedMachine.create(tmp_path / "stranger")
    platform = platform_of(on=stranger)
    denial = deny(own, platform)
    reason = denial.reason("sgx.root")
    assert denial.code == "untrusted-root"
    assert len(reason["found"]["sha256"]) == 64
    assert {"here", "intel"} == {each["name"] for each in reason["expected"]}
    root = tmp_path / "stranger.pem"
    root.write_text(stranger.root_certificate_pem())
    places = {"NAME": "there", "ROOT.pem": str(root), "COLLATERAL.json": collateral_file(stranger, tmp_path / "c")}
    cure(own, reason["command"] + " --simulated", **places)
    assert own.client(platform).get(URI) == VALUE


def test_a_revoked_platform(own: Any, enclave: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    set_collateral(own, machine, tmp_path / "c", condition=Condition(pck_revoked=True))
    denial = deny(own, enclave)
    assert denial.code == "quote-refused"
    assert "revoked" in denial.reason("evidence")["found"]


def test_a_debug_enclave(own: Any, platform_of: Callable[..., Any]) -> None:
    denial = deny(own, platform_of(debug=True))
    reason = denial.reason("sgx.body.attributes.flags")
    assert (denial.code, reason["expected"]) == ("debug-enclave", "bit 1 (DEBUG) clear")


# --- what the evidence binds


def test_init_data_that_was_changed(own: Any, platform_of: Callable[..., Any]) -> None:
    started = platform_of(config_id=binding.pad(InitData.parse(INIT_DATA.decode()).digest()))
    denial = deny(own, started, init_data=INIT_DATA.replace(b'1"', b'2"'))
    reason = denial.reason("init_data")
    assert denial.code == "quote-refused"
    assert reason["found"] == started.identity.config_id.hex()
    assert reason["expected"] != reason["found"]
    assert own.client(started, init_data=INIT_DATA).get(URI) == VALUE


def test_a_kind_of_evidence_that_is_not_named(own: Any) -> None:
    http = HttpsClient(own.url, certificate_pem=own.certificate, deadline=10, keep_alive=False)
    answer = http.request("POST", "/kbs/v0/auth", messages.Request("tdx").encode())
    decision = own.admin.explain(messages.Problem.parse(answer.body).id)
    (reason,) = decision["reasons"]
    assert (reason["claim"], reason["found"], reason["expected"]) == ("tee", "tdx", ["sgx"])


# --- policies of the owner's own


def test_a_release_policy_of_the_owners_own(own: Any, enclave: Any, tmp_path: Path) -> None:
    own.admin.set_policy(
        "release", HEAD + 'allow if {\n\tinput.submods.cpu0["ear.status"] == "affirming"\n\tdata["resource-path"][1] == "cert"\n}\n'
    )
    denial = deny(own, enclave)
    reason = denial.reason("data.resource-path.*")
    assert (denial.code, reason["found"], reason["expected"]) == ("kbs-denied", "image-key", "cert")
    assert reason["place"] == {"policy": "resource-policy", "version": 2, "line": 6}
    own.cli("policy", "rollback", "release")
    assert own.client(enclave).get(URI) == VALUE


def test_a_policy_of_the_path(own: Any, enclave: Any, tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(HEAD + 'allow if data.query.purpose == "boot"\n')
    own.cli("policy", "set", "resource-policy/default/image-key", str(tmp_path / "p.rego"))
    denial = deny(own, enclave)
    reason = denial.reason("data.query.purpose")
    assert (reason["found"], reason["expected"]) == (None, "boot")
    assert reason["place"]["policy"] == "resource-policy/default/image-key"
    assert "resource-policy/default/image-key" in denial.decision["reasons"][0]["rule"]
    own.cli("policy", "rm", "resource-policy/default/image-key")
    assert own.client(enclave).get(URI) == VALUE


def test_a_policy_that_never_allows(own: Any, enclave: Any) -> None:
    own.admin.set_policy("release", HEAD)
    root = deny(own, enclave).decision["reasons"][0]
    assert "policy itself" in root["advice"]
    assert "default allow := false" in own.cli(*shlex.split(root["command"])[1:]).stdout


def test_an_attestation_policy_of_the_owners_own(own: Any, enclave: Any) -> None:
    own.admin.set_policy(
        "attestation",
        "package policy\nimport rego.v1\ndefault hw := 97\nhw := 2 if {\n\tinput.sgx.tcb_eval_num >= minimum\n}\n"
        'minimum := 900\ntrust_claims := {"hardware": hw}\n',
    )
    reason = deny(own, enclave).reason("sgx.tcb_eval_num")
    assert reason["expected"] == "at least 900"
    assert isinstance(reason["found"], int)
    assert reason["place"]["line"] == 5
    own.cli("policy", "rollback", "attestation")
    assert own.client(enclave).get(URI) == VALUE


def test_a_policy_that_asks_for_a_reference_value(own: Any, enclave: Any) -> None:
    own.admin.set_policy(
        "release",
        HEAD + 'allow if input.submods.cpu0["ear.veraison.annotated-evidence"].sgx.fmspc in query_reference_value("fmspcs")\n',
    )
    denial = deny(own, enclave)
    (reason,) = [each for each in denial.reasons() if each["claim"].endswith("sgx.fmspc")]
    own.cli("refvals", "set", "fmspcs", reason["found"])
    assert own.client(enclave).get(URI) == VALUE


def test_a_policy_that_fails(own: Any, enclave: Any) -> None:
    own.admin.set_policy("release", "package policy\nimport rego.v1\nallow := true if input.submods\nallow := false if input.iat\n")
    root = deny(own, enclave).decision["reasons"][0]
    assert "does not evaluate" in root["found"]
    cure(own, root["command"])
    assert own.client(enclave).get(URI) == VALUE


def test_an_attestation_policy_that_fails(own: Any, enclave: Any) -> None:
    own.admin.set_policy("attestation", 'package policy\ntrust_claims := {"hardware": 500}\n')
    root = deny(own, enclave).decision["reasons"][0]
    assert "signed byte" in root["found"]
    cure(own, root["command"])
    assert own.client(enclave).get(URI) == VALUE


# --- resources and administrators


def test_a_missing_resource_is_cured_by_storing_it(own: Any, enclave: Any, tmp_path: Path) -> None:
    denial = deny(own, enclave, "kbs:///default/image-key/onee")
    reason = denial.reason("resource/default/image-key/onee")
    assert (denial.code, reason["nearest"]) == ("key-missing", PATH)
    (tmp_path / "v").write_bytes(VALUE)
    cure(own, reason["command"], FILE=str(tmp_path / "v"))
    assert own.client(enclave).get("kbs:///default/image-key/onee") == VALUE


def test_a_missing_signature_policy(own: Any, enclave: Any) -> None:
    reason = deny(own, enclave, "kbs:///default/security-policy/test").reason("resource/default/security-policy/test")
    assert "image publish" in reason["command"]


def ask(kbs: Any, token: str | None) -> messages.Problem:
    http = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=10, keep_alive=False)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return messages.Problem.parse(http.request("GET", "/kbs/v0/admin/policies", None, headers).body)


def test_admin_tokens_that_are_refused(own: Any) -> None:
    key = SigningKey.from_pem((own.directory / "admin.key").read_bytes())
    now = time.time()
    stranger = admin.issue_token(SigningKey.generate("EdDSA"), "admin", now)
    expired = admin.issue_token(key, "admin", now - 3600)
    unknown = admin.issue_token(key, "CANARY-role", now)
    for token, code, claim, told in (
        (None, "unauthenticated", "admin-token", ""),
        ("x.y.z", "unauthenticated", "admin-token", ""),
        (stranger, "unauthenticated", "admin-token", "role"),
        (expired, "unauthenticated", "admin-token", "exp"),
        (unknown, "forbidden", "admin-token.role", "CANARY-role"),
    ):
        problem = ask(own, token)
        assert problem.code == code
        assert "CANARY" not in problem.detail
        decision = own.admin.explain(problem.id)
        (reason,) = decision["reasons"]
        assert (decision["stage"], reason["claim"]) == ("admin", claim)
        assert "kbs.toml" in reason["advice"]
        assert told in json.dumps(reason)
        if token is not None and len(token) > 20:
            assert token.rsplit(".", 1)[1] not in json.dumps(decision)  # no signature, so no token
            assert token.rsplit(".", 1)[1] not in own.log.read_text()
        assert "GET /kbs/v0/admin/policies" in own.cli("explain", problem.id).stdout
