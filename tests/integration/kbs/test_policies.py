"""Policies and reference values by command line against a real KBS: drafts, switches, paths, signed statements, tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.__main__ import main
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.policy import defaults
from enclave_cc.owner.reference import statement
from enclave_cc.owner.reference.statement import Build, Dependency
from enclave_cc.owner.reference.values import ReferenceValue

PATH = "default/image-key/one"
HEAD = "package policy\nimport rego.v1\ndefault allow := false\n"


@pytest.fixture(scope="module", autouse=True)
def resources(kbs: Any) -> None:
    for path in (PATH, "other/key/one"):
        kbs.admin.set_resource(path, b"value")


def allowed(kbs: Any, enclave: Any, path: str = PATH) -> bool:
    try:
        return bool(kbs.client(enclave).get(f"kbs:///{path}") == b"value")
    except EnclaveCcError:
        return False


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_draft_then_a_switch_then_back(kbs: Any, enclave: Any, tmp_path: Path) -> None:
    deny = write(tmp_path / "deny.rego", HEAD)
    assert "draft" in kbs.cli("policy", "set", "release", deny, "--draft", "--note", "try it").stdout
    assert allowed(kbs, enclave)
    row = next(row for row in json.loads(kbs.cli("policy", "ls", "--json").stdout) if row["id"] == "resource-policy")
    draft, active = row["newest"], row["version"]
    assert draft == active + 1
    diff = kbs.cli("policy", "diff", "release", deny, check=False)
    assert diff.returncode == 1
    assert "-allow if {" in diff.stdout
    assert kbs.cli("policy", "diff", f"release={draft}", deny).stdout == ""
    assert kbs.cli("policy", "get", f"release={draft}").stdout == HEAD
    assert f"resource-policy={draft} is active" in kbs.cli("policy", "activate", f"release={draft}").stdout
    assert not allowed(kbs, enclave)
    history = kbs.cli("policy", "history", "release").stdout
    assert "try it" in history
    assert "admin" in history
    assert f"resource-policy={active} is active" in kbs.cli("policy", "rollback", "release").stdout
    assert allowed(kbs, enclave)


def test_a_policy_that_never_allows_is_stored_with_a_word(kbs: Any, tmp_path: Path) -> None:
    text = HEAD + 'allow if input.submods.cpu0["ear-status"] == "affirming"\n'
    done = kbs.cli("policy", "set", "release", write(tmp_path / "p", text), "--draft")
    assert "error unknown-claim" in done.stderr


def test_two_at_once_or_none(kbs: Any, enclave: Any, tmp_path: Path) -> None:
    kbs.cli("policy", "set", "resource-policy/other", write(tmp_path / "a", HEAD), "--draft")
    kbs.cli("policy", "set", "resource-policy/other/key", write(tmp_path / "b", HEAD + "allow if input.submods\n"), "--draft")
    done = kbs.cli("policy", "activate", "resource-policy/other", "resource-policy/other/key=99", check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (3, "error not-found")
    assert json.loads(kbs.cli("policy", "ls", "--json").stdout)[-1]["version"] is None
    kbs.cli("policy", "activate", "resource-policy/other", "resource-policy/other/key")
    assert allowed(kbs, enclave, "other/key/one")
    kbs.cli("policy", "rm", "resource-policy/other/key")
    assert not allowed(kbs, enclave, "other/key/one")
    assert allowed(kbs, enclave)
    kbs.cli("policy", "rm", "resource-policy/other")
    assert allowed(kbs, enclave, "other/key/one")


def test_wrong_words(kbs: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "p", HEAD)
    for words, code in (
        (("set", "resource-policy/../x", file), 2),
        (("set", "no such", file), 2),
        (("get", "release=x"), 2),
        (("get", "release=999"), 3),
        (("get", "default_gpu"), 3),
        (("history", "default_gpu"), 3),
        (("activate", "default_gpu"), 3),
        (("rollback", "default_gpu"), 3),
        (("rm", "release"), 2),
        (("rm", "resource-policy/none"), 3),
    ):
        assert kbs.cli("policy", *words, check=False).returncode == code, words


def test_upstreams_endpoint_sets_and_activates(kbs: Any, enclave: Any) -> None:
    before = kbs.admin.get_policy("release")
    kbs.admin._send_json("resource-policy", {"policy": "cGFja2FnZSBwb2xpY3kKZGVmYXVsdCBhbGxvdyA6PSBmYWxzZQo"})
    assert not allowed(kbs, enclave)
    assert kbs.admin.get_policy("release")["version"] > before["version"]
    kbs.cli("policy", "rollback", "release")
    assert allowed(kbs, enclave)


REFERENCE = {
    "role": "agent",
    "libos": "simulated",
    "mr_enclave": "5a" * 32,
    "mr_signer": "bb" * 32,
    "isv_prod_id": 1,
    "isv_svn": 3,
    "debug": False,
    "inputs": {"enclave_cc": "0.1", "debian": {}, "wheels": []},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle directory as far as signing and adding look at it."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "manifest.json").write_text("{}")
    (directory / "reference.json").write_text(json.dumps(REFERENCE))
    build = Build(builder="https://ci.example", started=0, finished=60, dependencies=[Dependency("git", {"gitCommit": "c0" * 20})])
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    (directory / "provenance.json").write_text(json.dumps(statement.make_statement(REFERENCE, digest, build)))
    return directory


def test_a_signed_bundle(new_kbs: Callable[..., Any], machine: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    kbs = new_kbs(tmp_path / "own", machine)
    try:
        key = SigningKey.generate()
        pem, public = tmp_path / "ci.pem", tmp_path / "ci.pub"
        pem.write_bytes(key.to_pem().reveal())
        public.write_bytes(key.public.to_pem())
        assert main(["refvals", "sign", str(bundle), "--key", str(pem), "--expires", "2099-01-01"]) == 0
        done = kbs.cli("refvals", "add", str(bundle), check=False)
        assert (done.returncode, done.stderr.split(":")[0]) == (31, "error signature-untrusted")
        assert kbs.cli("refvals", "key", "add", "ci", str(pem), check=False).returncode == 2  # the private one stays here
        assert key.public.key_id in kbs.cli("refvals", "key", "add", "ci", str(public)).stdout
        assert "signed by ci" in kbs.cli("refvals", "add", str(bundle)).stdout
        (row,) = [row for row in json.loads(kbs.cli("refvals", "ls", "--json").stdout) if row["value"] == "5a" * 32]
        assert row["source"]["provenance"] == {
            "builder": "https://ci.example",
            "built": "1970-01-01T00:01:00Z",
            "commit": "c0" * 20,
        }
        assert (row["source"]["signed_by"], row["state"], row["expires"]) == ("ci", "active", 4070908800)
        told = kbs.cli("refvals", "ls").stdout
        assert "signed by ci" in told
        assert "commit c0c0c0c0c0c0" in told
        # Once a builder's key is named, what is not signed must be said to be so.
        plain = bundle / "reference.json"
        assert kbs.cli("refvals", "add", str(plain), check=False).returncode == 2
        assert kbs.cli("refvals", "add", str(plain), "--unsigned").returncode == 0
        changed = json.loads((bundle / "reference.dsse.json").read_text())
        changed["payload"] = changed["payload"][:-8] + "AAAAAAA="
        (tmp_path / "changed").write_text(json.dumps(changed))
        assert kbs.cli("refvals", "add", str(tmp_path / "changed"), check=False).returncode == 31
        kbs.cli("refvals", "key", "rm", "ci")
        assert kbs.cli("refvals", "add", str(bundle), check=False).returncode == 31
        kbs.cli("refvals", "retire", "sgx_mr_enclave", "5a" * 32, "--reason", "CVE-2099-1")
        assert "CVE-2099-1" in kbs.cli("refvals", "ls").stdout
        assert kbs.cli("refvals", "add", str(plain), "--unsigned", check=False).returncode == 3
        kbs.cli("refvals", "restore", "sgx_mr_enclave", "5a" * 32)
    finally:
        assert kbs.stop() == 0


def test_an_unsigned_value_claims_no_signature(kbs: Any) -> None:
    source = {"signed_by": "ci", "key_id": "x", "provenance": {"builder": "y"}, "note": "z"}
    kbs.admin.add_reference_values([ReferenceValue("forged", 1, source=source)])
    (value,) = [value for value in kbs.admin.list_reference_values() if value.name == "forged"]
    assert value.source == {"note": "z"}


def test_provenance_of_another_bundle_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").write_text('{"other": 1}')
    (tmp_path / "k.pem").write_bytes(SigningKey.generate().to_pem().reveal())
    assert main(["refvals", "sign", str(bundle), "--key", str(tmp_path / "k.pem")]) == 2
    assert not (bundle / "reference.dsse.json").exists()


def test_lint_and_tests_need_no_kbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = write(
        tmp_path / "release.rego", defaults.read_default(defaults.RELEASE_ID).replace('["ear.status"]', '["ear-status"]')
    )
    assert main(["policy", "lint", policy]) == 19
    told = capsys.readouterr().out
    assert 'release.rego:15: error unknown-claim: input.submods[_]["ear-status"]' in told
    assert 'did you mean input.submods[_]["ear.status"]?' in told
    case = '{name: good, evidence: {sgx: {body: {mr_enclave: "%s"}}}, request: a/b/c, expect: {allow: true}}' % ("aa" * 32)
    text = f'policy: release.rego\nreference_values: {{sgx_mr_enclave: ["{"aa" * 32}"]}}\ncases:\n- {case}\n'
    write(tmp_path / "cases.yaml", text)
    assert main(["policy", "test", str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out
    write(tmp_path / "release.rego", defaults.read_default(defaults.RELEASE_ID))
    rego = "package policy_test\nimport rego.v1\nimport data.policy\ntest_nobody if not policy.allow with input as {}\n"
    write(tmp_path / "release_test.rego", rego)
    assert main(["policy", "test", "-v", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "2 passed, 0 failed" in told
    assert "data.policy_test.test_nobody" in told
    assert main(["policy", "test", "--json", "--run", "nobody", str(tmp_path / "release_test.rego")]) == 0
    assert [each["outcome"] for each in json.loads(capsys.readouterr().out)] == ["pass"]
    assert main(["policy", "test", "--run", "none such", str(tmp_path)]) == 2
    assert main(["policy", "test", "--run", "(", str(tmp_path)]) == 2


def test_lint_against_the_values_of_a_kbs(kbs: Any, tmp_path: Path) -> None:
    policy = write(tmp_path / "p.rego", HEAD + 'allow if input.iss in query_reference_value("sgx_mr_enclav")\n')
    done = kbs.cli("policy", "lint", policy)
    assert "unknown-reference-value" in done.stdout
    assert '"sgx_mr_enclave"' in done.stdout
