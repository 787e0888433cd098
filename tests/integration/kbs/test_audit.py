"""The audit log of a running KBS: who got which key, on what evidence, under which policy; and no secret in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs import admin
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.transport.https import HttpsClient
from enclave_cc.wire.audit.export import EntryLine, parse_line

ACME, OTHER = "acme/key/db", "umbrella/key/virus"
CANARY = b"CANARY-" + os.urandom(16).hex().encode()


@pytest.fixture(scope="module")
def worked(kbs: Any, enclave: Any, machine: Any) -> Any:
    """A KBS that has done one of everything."""
    for path in (ACME, OTHER):
        kbs.admin.set_resource(path, CANARY)
    client = kbs.client(enclave)
    for path in (ACME, OTHER, ACME):
        assert client.get(f"kbs:///{path}") == CANARY
    with pytest.raises(EnclaveCcError):
        client.get("kbs:///acme/key/absent")
    kbs.admin.get_resource(ACME)
    kbs.admin.set_resource("acme/key/gone", b"x")
    kbs.admin.delete_resource("acme/key/gone")
    kbs.admin.set_policy("release", kbs.admin.get_policy("release")["text"])
    return kbs


def export(kbs: Any, *words: str) -> list[dict[str, Any]]:
    lines = kbs.cli("kbs", "audit", "export", *words).stdout.splitlines()
    return [json.loads(line)["entry"] for line in lines if '"entry"' in line]


def test_every_deed_is_there(worked: Any) -> None:
    entries = export(worked, "--all")
    kinds = [entry["kind"] for entry in entries]
    begin = ["root-added", "collateral-set", "start", "reference-values-added", "resource-set", "resource-set", "attestation"]
    assert kinds[:7] == begin
    assert kinds[7:11] == ["release", "release", "release", "denial"]
    assert kinds[11:15] == ["resource-read", "resource-set", "resource-removed", "policy-set"]
    assert json.loads(worked.cli("kbs", "audit", "verify", "--json").stdout)["entries"] == len(entries)


def test_who_got_which_key_on_what_evidence_under_which_policy(worked: Any, enclave: Any) -> None:
    entries = export(worked, "--all")
    attestation = next(entry for entry in entries if entry["kind"] == "attestation")["document"]
    release = next(entry for entry in entries if entry["kind"] == "release")
    measured = enclave.identity.mr_enclave.hex()
    assert release["subject"] == {"path": ACME, "number": 2}
    document = release["document"]
    assert document["resource_version"] == 1
    for each in (attestation, document):
        (who,) = each["attester"]
        assert (who["mr_enclave"], who["root"], who["simulated"], who["status"]) == (measured, "here", True, "affirming")
        assert [(p["version"], len(p["digest"])) for p in each["policies"]] == [(1, 96)]
    assert attestation["tee"] == "sgx"
    assert len(attestation["evidence"]) == 64
    assert attestation["references"]["sgx_mr_enclave"] == [measured]
    assert document["attestation"] == attestation["decision"]
    assert document["token"] == attestation["token"]
    denial = next(entry for entry in entries if entry["kind"] == "denial")
    assert (denial["subject"]["path"], denial["document"]["code"]) == ("acme/key/absent", "key-missing")
    changed = next(entry for entry in entries if entry["kind"] == "resource-set")["document"]
    assert changed == {"by": {"role": "admin", "subject": "admin", "provider": "owner"}, "version": 1, "size": len(CANARY)}
    assert entries[0]["document"]["by"] == {"local": True}


def test_explain_names_the_entry(worked: Any) -> None:
    row = next(row for row in json.loads(worked.cli("explain", "--json").stdout) if row.get("code") == "key-missing")
    decision = json.loads(worked.cli("explain", row["id"], "--json").stdout)
    proof = worked.cli("kbs", "audit", "prove", str(decision["audit"])).stdout
    assert proof.startswith("c2sp.org/tlog-proof@v1\n")
    shown = worked.cli("kbs", "audit", "verify", "-", "--json", text=proof).stdout
    assert json.loads(shown)["document"]["decision"] == row["id"]
    assert f"entry {decision['audit']} of the audit log" in worked.cli("explain", row["id"]).stdout
    broken = proof.replace("index ", "index 1", 1)
    assert worked.cli("kbs", "audit", "verify", "-", text=broken, check=False).returncode == 20


def test_an_owner_verifies_without_the_kbs(worked: Any, tmp_path: Path) -> None:
    kept, file, key = tmp_path / "kept", tmp_path / "acme.jsonl", tmp_path / "audit.pub"
    shutil.copy(worked.directory / "audit.pub", key)
    worked.cli("kbs", "audit", "checkpoint", "--out", str(kept))
    worked.admin.set_resource("acme/key/more", b"x")
    words = ["--resource-prefix", "acme", "--checkpoint", str(kept), "--out", str(file)]
    worked.cli("kbs", "audit", "export", *words)
    text = file.read_text()
    assert "umbrella" not in text
    paths = [json.loads(line)["entry"]["subject"] for line in text.splitlines() if '"entry"' in line]
    assert {path["path"] for path in paths if path} == {ACME, "acme/key/absent", "acme/key/gone", "acme/key/more", ""}

    class Elsewhere:
        directory = tmp_path / "nowhere"

    verify = type(worked).cli.__get__(Elsewhere())
    words = ["kbs", "audit", "verify", str(file), "--key", str(key), "--checkpoint", str(kept)]
    assert "verified what concerns acme" in verify(*words).stdout
    assert verify("audit", *words[2:]).returncode == 0
    file.write_text(text.replace('"version":1}', '"version":2}', 1))
    assert verify(*words, check=False).returncode == 20
    file.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    failed = verify(*words, check=False)
    assert (failed.returncode, "audit-truncated" in failed.stderr) == (20, True)
    assert verify(*words[:3], str(tmp_path / "absent"), "--key", str(key), check=False).returncode == 3
    assert verify(*words[:4], check=False).returncode == 3  # no key


def test_the_same_over_http(worked: Any, tmp_path: Path) -> None:
    """An owner has the owner's part of the KBS directory only."""
    part = tmp_path / "part"
    part.mkdir()
    for name in ("owner.toml", "admin.key", "kbs.crt", "kbs.url", "audit.pub"):
        shutil.copy(worked.directory / name, part / name)
    remote = type(worked)(part, worked.log)
    for words in (["--all"], ["--resource-prefix", "acme"], ["--resource-prefix", ""]):
        assert export(remote, *words) == export(worked, *words)
    found = json.loads(remote.cli("kbs", "audit", "verify", "--json").stdout)
    assert found["entries"] == len(export(worked, "--all"))
    assert remote.cli("kbs", "audit", "prove", "3").stdout.startswith("c2sp.org/tlog-proof@v1\n")
    assert remote.cli("kbs", "audit", "prove", "100000", check=False).returncode == 3
    kept = tmp_path / "kept"
    remote.cli("kbs", "audit", "checkpoint", "--out", str(kept))
    remote.cli("kbs", "audit", "export", "--resource-prefix", "acme", "--checkpoint", str(kept))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("audit", 200),
        ("audit/checkpoint", 200),
        ("audit/log", 400),
        ("audit/log?size=1", 400),
        ("audit/log?size=1&begin=0", 200),
        ("audit/log?size=99999&begin=0", 400),
        ("audit/log?size=01&begin=0", 400),
        ("audit/log?size=-1&begin=0", 400),
        ("audit/consistency?old=1&new=2", 200),
        ("audit/consistency?old=2&new=1", 400),
        ("audit/consistency?old=1&new=99999", 400),
        ("audit/entries/0?size=1", 200),
        ("audit/entries/1?size=1", 404),
        ("audit/entries/x?size=1", 400),
        ("audit/resources?size=1&begin=0", 200),
        ("audit/resources/a/b/c/d?size=1&begin=0", 400),
        ("audit/resources/a%2Fb?size=1&begin=0", 400),
        ("audit/resources/a//b?size=1&begin=0", 400),
    ],
)
def test_wrong_questions(worked: Any, path: str, status: int) -> None:
    http = HttpsClient(worked.url, certificate_pem=worked.certificate, deadline=10, keep_alive=False)
    assert http.request("GET", f"/kbs/v0/admin/{path}", None, {}).status == 401
    key = AdminClient.from_directory(worked.directory)._key
    token = {"Authorization": f"Bearer {admin.issue_token(key, 'admin', time.time())}"}
    answer = http.request("GET", f"/kbs/v0/admin/{path}", None, token)
    assert answer.status == status, answer.body


def test_no_secret_is_in_it(worked: Any) -> None:
    text = worked.cli("kbs", "audit", "export", "--all").stdout
    database = sqlite3.connect(worked.directory / "kbs.db")
    stored = b"".join(row[0] for row in database.execute("SELECT entry FROM audit_entry"))
    database.close()
    for name in ("store.key", "admin.key", "audit.key", "token.key"):
        secret = (worked.directory / name).read_text().strip().splitlines()
        assert secret[len(secret) // 2] not in text
    for where in (text.encode(), stored, worked.log.read_bytes()):
        assert CANARY not in where
        assert b"eyJ" not in where  # the beginning of every token
    assert hashlib.sha256(CANARY).hexdigest() not in text


def test_refusals_of_the_unattested_are_not_in_it(worked: Any, platform_of: Callable[..., Any]) -> None:
    before = len(export(worked, "--all"))
    client = worked.client(platform_of(debug=True))
    with pytest.raises(EnclaveCcError):
        client.get(f"kbs:///{ACME}")
    assert len(export(worked, "--all")) == before


def test_start_stop_and_a_new_key(worked: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    worked.cli("kbs", "audit", "checkpoint", "--out", str(kept))
    old = (worked.directory / "audit.pub").read_text()
    assert worked.stop() == 0
    worked.cli("kbs", "audit", "new-key")
    assert (worked.directory / "audit.pub").read_text().startswith(old)
    worked.start()
    kinds = [entry["kind"] for entry in export(worked, "--all")]
    assert kinds[-2:] == ["stop", "start"]
    worked.cli("kbs", "audit", "verify", "--checkpoint", str(kept))
    entry = export(worked, "--all")[-1]
    assert entry["document"]["key"] == (worked.directory / "audit.pub").read_text().split()[-1]


def test_a_changed_log_is_found_and_not_served(worked: Any, tmp_path: Path) -> None:
    assert worked.stop() == 0
    other = type(worked)(tmp_path / "copy", tmp_path / "log")
    shutil.copytree(worked.directory, other.directory)
    worked.start()
    database = sqlite3.connect(other.directory / "kbs.db")
    with database:
        database.execute(
            "UPDATE audit_entry SET entry = CAST(replace(CAST(entry AS TEXT), 'umbrella', 'another1') AS BLOB) WHERE leaf_index = 5"
        )
    database.close()
    failed = other.cli("kbs", "audit", "verify", check=False)
    assert (failed.returncode, "audit-broken: entry 5 was changed" in failed.stderr) == (20, True)
    database = sqlite3.connect(other.directory / "kbs.db")
    with database:
        database.execute("DELETE FROM audit_entry WHERE leaf_index >= (SELECT size - 1 FROM audit_head)")
    database.close()
    assert "audit-broken" in other.cli("kbs", "serve", check=False).stderr


def test_a_directory_from_before_there_was_a_log(worked: Any, tmp_path: Path) -> None:
    other = type(worked)(tmp_path / "copy", tmp_path / "log")
    other.cli("kbs", "init", "--listen", "127.0.0.1:0")
    for name in ("audit.key", "audit.pub"):
        (other.directory / name).unlink()
    failed = other.cli("kbs", "serve", check=False)
    assert (failed.returncode, "kbs audit new-key" in failed.stderr) == (3, True)
    other.cli("kbs", "audit", "new-key")
    other.start()
    assert other.stop() == 0
    assert other.cli("kbs", "audit", "verify").stdout.startswith("verified the whole log")


def test_lines_are_one_format(worked: Any) -> None:
    lines = worked.cli("kbs", "audit", "export", "--resource-prefix", "acme").stdout.encode().splitlines()
    assert sum(isinstance(parse_line(line), EntryLine) for line in lines) == len(lines) - 2
