"""The admin API and the owner's command line, against a real KBS."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.transport.https import HttpsClient, Response
from enclave_cc.wire.rcar import messages


def refused(call: Callable[[], object]) -> EnclaveCcError:
    with pytest.raises(EnclaveCcError) as caught:
        call()
    return caught.value


def request(kbs: Any, method: str, path: str, token: str | None, body: bytes | None = None) -> Response:
    http = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=10, keep_alive=False)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return http.request(method, f"/kbs/v0/{path}", body, headers)


@pytest.fixture
def admin_key(kbs: Any) -> bytes:
    return (kbs.directory / "admin.key").read_bytes()  # type: ignore[no-any-return]


def token_of(key: bytes, **claims: object) -> str:
    """A token as upstream's tools make it: PyJWT, EdDSA."""
    full = {"iss": "TrusteeInDocker", "sub": "admin", "aud": ["KBS"], "role": "admin", "exp": int(time.time()) + 60, **claims}
    return jwt.encode({name: value for name, value in full.items() if value is not None}, key, algorithm="EdDSA")


def test_resources_by_command_line(kbs: Any, tmp_path: Path) -> None:
    value = bytes(range(256))
    (tmp_path / "value").write_bytes(value)
    kbs.cli("resource", "set", "default/cli/file", str(tmp_path / "value"))
    kbs.cli("resource", "set", "kbs:///default/cli/stdin", "-", text="typed")
    kbs.cli("resource", "get", "default/cli/file", "-o", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == value
    assert (tmp_path / "back").stat().st_mode & 0o077 == 0
    assert kbs.cli("resource", "get", "default/cli/stdin").stdout == "typed"
    rows = json.loads(kbs.cli("resource", "ls", "default/cli/", "--json").stdout)
    assert [(row["path"], row["version"], row["size"]) for row in rows] == [
        ("default/cli/file", 1, 256),
        ("default/cli/stdin", 1, 5),
    ]
    assert "typed" not in kbs.cli("resource", "ls").stdout
    kbs.cli("resource", "rm", "default/cli/file")
    for words in (("resource", "get", "default/cli/file"), ("resource", "rm", "default/cli/file")):
        done = kbs.cli(*words, check=False)
        assert done.returncode == 3
        assert done.stderr.startswith("error not-found: ")
    assert kbs.cli("resource", "set", "not-a-path", "-", check=False).returncode == 2
    assert kbs.cli("resource", "set", "a/b/c", str(tmp_path / "absent"), check=False).returncode == 3


def test_policies_by_command_line(kbs: Any, tmp_path: Path) -> None:
    for kind, marker in (("release", "default allow"), ("attestation", "trust_claims")):
        text = kbs.cli("policy", "get", kind).stdout
        assert marker in text
        (tmp_path / "p.rego").write_text(text)
        before = json.loads(kbs.cli("policy", "get", kind, "--json").stdout)
        kbs.cli("policy", "set", kind, str(tmp_path / "p.rego"))
        after = json.loads(kbs.cli("policy", "get", kind, "--json").stdout)
        assert after["version"] == before["version"] + 1
        assert after["text"] == text
    (tmp_path / "broken.rego").write_text("package policy\n\nallow if {")
    done = kbs.cli("policy", "set", "release", str(tmp_path / "broken.rego"), check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (19, "error policy-invalid")
    assert ":3:" in done.stderr
    assert json.loads(kbs.cli("policy", "get", "release", "--json").stdout)["text"] != "package policy\n\nallow if {"


def test_policy_lint_needs_no_kbs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from enclave_cc.__main__ import main

    for text, code in (("package policy\ndefault allow := false\n", 0), ("package policy\nx := 1\n", 19), ("package x", 19)):
        (tmp_path / "p.rego").write_text(text)
        assert main(["policy", "lint", str(tmp_path / "p.rego")]) == code
    assert "release policy" in capsys.readouterr().out


def test_reference_values_by_command_line(kbs: Any, tmp_path: Path) -> None:
    reference = {
        "role": "agent",
        "libos": "simulated",
        "mr_enclave": "1" * 64,
        "mr_signer": "cd" * 32,
        "isv_prod_id": 1,
        "isv_svn": 0,
    }
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    kbs.cli("refvals", "add", str(tmp_path / "reference.json"), "--expires", "2099-01-31")
    rows = {(row["name"], str(row["value"])): row for row in json.loads(kbs.cli("refvals", "ls", "--json").stdout)}
    row = rows["sgx_mr_enclave", "1" * 64]
    assert row["source"]["bundle"] == "agent"
    assert row["expires"] == 4073500800
    assert "2099-01-31" in kbs.cli("refvals", "ls").stdout
    kbs.cli("refvals", "rm", "sgx_mr_enclave", "1" * 64)
    assert ("sgx_mr_enclave", "1" * 64) not in {
        (row["name"], str(row["value"])) for row in json.loads(kbs.cli("refvals", "ls", "--json").stdout)
    }
    payload = base64.b64encode(b'{"svn":["1"],"major_version":1}').decode()
    message = json.dumps({"version": "0.1.0", "type": "sample", "payload": payload})
    kbs.cli("refvals", "add", "-", text=message)
    assert kbs.cli("refvals", "rm", "svn").returncode == 0
    assert kbs.cli("refvals", "rm", "svn", check=False).returncode == 3
    assert kbs.cli("refvals", "add", "-", text="{}", check=False).returncode == 2
    assert kbs.cli("refvals", "add", "-", "--expires", "soon", text=message, check=False).returncode == 2


def test_roots_by_command_line(kbs: Any, machine: SimulatedMachine, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(kbs.cli("kbs", "root", "ls", "--json").stdout)}
    assert rows["intel"]["simulated"] is False
    assert (rows["here"]["simulated"], rows["here"]["fmspc"]) == (True, machine.fmspc.hex())
    (tmp_path / "root.pem").write_text(machine.root_certificate_pem())
    (tmp_path / "collateral.json").write_bytes(machine.collateral(int(time.time())).encode())
    (tmp_path / "stale.json").write_bytes(machine.collateral(int(time.time()) - 365 * 86400).encode())
    files = ("--certificate", str(tmp_path / "root.pem"), "--collateral", str(tmp_path / "collateral.json"))
    for words, code, says in (
        (("other", *files), "untrusted-root", "--simulated"),  # a simulated root must be called so
        (("intel", *files, "--simulated"), "usage", "intel"),
        (("Other!", *files, "--simulated"), "usage", "cannot name"),
        (("other", *files[:2], "--simulated"), "usage", "--collateral"),
        (("other", "--collateral", str(tmp_path / "collateral.json")), "usage", "--certificate"),
        (("intel", "--collateral", str(tmp_path / "collateral.json")), "collateral-refused", ""),
        (("other", *files[:2], "--collateral", str(tmp_path / "stale.json"), "--simulated"), "collateral-refused", "valid"),
        (("other", *files[:2], "--collateral", str(tmp_path / "root.pem"), "--simulated"), "malformed", ""),
    ):
        done = kbs.cli("kbs", "root", "add", *words, check=False)
        assert done.returncode != 0, words
        assert done.stderr.startswith(f"error {code}: "), done.stderr
        assert says in done.stderr
    stranger = SimulatedMachine.create(tmp_path / "stranger")
    (tmp_path / "root.pem").write_text(stranger.root_certificate_pem())
    (tmp_path / "collateral.json").write_bytes(stranger.collateral(int(time.time())).encode())
    assert "already-exists" in kbs.cli("kbs", "root", "add", "here", *files, "--simulated", check=False).stderr
    assert "SIMULATED" in kbs.cli("kbs", "root", "add", "other", *files, "--simulated").stdout
    kbs.cli("kbs", "root", "rm", "other")
    assert kbs.cli("kbs", "root", "rm", "other", check=False).returncode == 3


def test_upstreams_admin_calls(kbs: Any, admin_key: bytes) -> None:
    """What `kbs-client config` sends, with a token made by PyJWT."""
    token = token_of(admin_key)
    policy = kbs.admin.get_policy("release")["text"]
    encoded = base64.urlsafe_b64encode(policy.encode()).rstrip(b"=").decode()
    assert request(kbs, "POST", "resource-policy", token, json.dumps({"policy": encoded}).encode()).status == 200
    assert json.loads(request(kbs, "GET", "resource-policy", token).body) == ["resource-policy"]
    policy = kbs.admin.get_policy("attestation")["text"]
    encoded = base64.urlsafe_b64encode(policy.encode()).decode()
    body = json.dumps({"type": "rego", "policy_id": "default_cpu", "policy": encoded}).encode()
    assert request(kbs, "POST", "attestation-policy", token, body).status == 200
    payload = base64.b64encode(b'{"launch_digest":["abcde"],"minimum_minor_version":1}').decode()
    message = json.dumps({"version": "0.1.0", "type": "sample", "payload": payload}).encode()
    assert request(kbs, "POST", "reference-value", token, message).status == 200
    assert json.loads(request(kbs, "GET", "reference-value/launch_digest", token).body) == ["abcde"]
    assert json.loads(request(kbs, "GET", "reference-value/minimum_minor_version", token).body) == 1
    assert json.loads(request(kbs, "GET", "reference-value/absent", token).body) is None
    answer = request(kbs, "POST", "resource/up/stream/key", token, b"\0raw bytes\xff")
    assert (answer.status, answer.body, answer.header("content-type")) == (200, b"", "text/xml")
    assert kbs.admin.get_resource("up/stream/key") == b"\0raw bytes\xff"
    assert request(kbs, "DELETE", "resource/up/stream/key", token).status == 200


ADMIN_CALLS = [
    ("POST", "resource/a/b/c"),
    ("DELETE", "resource/a/b/c"),
    ("GET", "resource-policy"),
    ("POST", "resource-policy"),
    ("POST", "attestation-policy"),
    ("GET", "reference-value/x"),
    ("POST", "reference-value"),
    ("GET", "admin/resources"),
    ("GET", "admin/resources/a/b/c"),
    ("GET", "admin/decisions"),
    ("GET", "admin/reference-values"),
    ("DELETE", "admin/reference-values?name=x"),
    ("GET", "admin/nothing"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN_CALLS)
def test_every_admin_path_asks_for_a_token(kbs: Any, admin_key: bytes, method: str, path: str) -> None:
    stranger = SigningKey.generate("EdDSA").to_pem()
    for token, status in (
        (None, 401),
        ("", 401),
        (token_of(stranger), 401),
        (token_of(admin_key, exp=int(time.time()) - 1), 401),
        (token_of(admin_key, exp=None), 401),
        (token_of(admin_key, nbf=int(time.time()) + 3600), 401),
        (token_of(admin_key, role="auditor"), 403),
        (token_of(admin_key, role=None), 403),
        (token_of(admin_key, role=["admin"]), 403),
    ):
        answer = request(kbs, method, path, token, b"{}" if method == "POST" else None)
        assert answer.status == status
        assert messages.Problem.parse(answer.body).variant in ("TokenNotFound", "AdminAuthAccess")


def test_another_admin_key(kbs: Any) -> None:
    stranger = AdminClient(kbs.url, certificate_pem=kbs.certificate, key=SigningKey.generate("EdDSA"))
    assert refused(lambda: stranger.set_resource("a/b/c", b"x")).code == "unauthenticated"
    assert refused(lambda: kbs.admin.get_resource("a/b/c")).code == "not-found"


def test_broken_admin_bodies(kbs: Any, admin_key: bytes) -> None:
    token = token_of(admin_key)
    for path, body in (
        ("resource-policy", b""),
        ("resource-policy", b"{}"),
        ("resource-policy", b'{"policy":5}'),
        ("resource-policy", b'{"policy":"!!"}'),
        ("resource-policy", b'{"policy":"_w"}'),
        ("attestation-policy", b'{"policy_id":"../x","policy":"eA"}'),
        ("attestation-policy", b'{"policy_id":"resource-policy","policy":"eA"}'),
        ("attestation-policy", b'{"policy_id":"default_cpu","policy":"eA"}'),
        ("reference-value", b"{}"),
        ("admin/reference-values", b"{}"),
        ("admin/reference-values", b'{"values":[1]}'),
        ("resource/a/b/c", bytes(2 * 1024 * 1024 + 1)),
    ):
        answer = request(kbs, "POST", path, token, body)
        assert answer.status in (400, 413), (path, body[:50])
    for path in ("admin/decisions?limit=0", "admin/decisions?limit=x", "admin/decisions?outcome=maybe", "admin/reference-values"):
        assert request(kbs, "DELETE" if path.endswith("values") else "GET", path, token).status == 400
    assert refused(lambda: kbs.admin.explain("nothing")).code == "not-found"


def test_the_log_says_whom_the_kbs_trusts(kbs: Any) -> None:
    (event,) = kbs.events("serving")
    assert event["url"] == kbs.url
    assert event["roots"] == [{"name": "intel", "simulated": False}, {"name": "here", "simulated": True}]
    assert event["evidence"] == ["sgx"]


def test_the_log_names_the_request_of_each_refusal(kbs: Any) -> None:
    """Threads serve one request after another: a line must not name the one before."""
    answers = []
    for _ in range(8):
        request(kbs, "GET", "resource/default/a/b", None)
        answers.append(request(kbs, "GET", "admin/decisions", None))
    lines = {event["id"]: event["request"] for event in kbs.events("deny")}
    for answer in answers:
        assert answer.status == 401
        assert lines[json.loads(answer.body)["id"]] == answer.header("x-request-id")


def test_explain_lists_denials(kbs: Any) -> None:
    assert request(kbs, "POST", "auth", None, messages.Request("tdx").encode()).status == 401
    rows = json.loads(kbs.cli("explain", "--json").stdout)
    assert (rows[0]["outcome"], rows[0]["code"], rows[0]["tee"]) == ("deny", "quote-refused", "tdx")
    assert json.loads(kbs.cli("explain", rows[0]["id"], "--json").stdout) == rows[0]
    assert rows[0]["id"] in kbs.cli("explain").stdout


def test_init_never_overwrites(kbs: Any, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in kbs.directory.iterdir() if path.suffix in (".key", ".crt", ".toml")}
    done = kbs.cli("kbs", "init", check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (3, "error already-exists")
    assert {path.name: path.read_bytes() for path in kbs.directory.iterdir() if path.suffix in (".key", ".crt", ".toml")} == before
    assert kbs.directory.stat().st_mode & 0o077 == 0
    for path in kbs.directory.glob("*.key"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_missing_or_broken_directory(tmp_path: Path) -> None:
    from enclave_cc.__main__ import main

    assert main(["kbs", "serve", "--dir", str(tmp_path / "absent")]) == 3
    assert main(["resource", "ls", "--kbs", str(tmp_path / "absent")]) == 3
    assert main(["kbs", "init", "--dir", str(tmp_path / "kbs"), "--listen", "nonsense"]) == 2
    assert main(["kbs", "init", "--dir", str(tmp_path / "kbs"), "--listen", "127.0.0.1:1", "--hostname", "kbs.example"]) == 0
    assert main(["resource", "ls", "--kbs", str(tmp_path / "kbs")]) == 8  # never started
    good = (tmp_path / "kbs/kbs.toml").read_text()
    for old, new in (
        ('listen = "127.0.0.1:1"', "listen = 5"),
        ("lifetime = 300 ", 'lifetime = "long" '),
        ('tees = ["sgx"]', 'tees = ["sgx", "tdx"]'),
        ('admin = ["', 'admin = ["('),
        ("request_deadline = 30", "request_deadlines = 30"),
        ("[session]", "[sessions]"),
        ("body_limit = 2097152", "body_limit = 0"),
        ("[server]", "["),
    ):
        assert old in good
        (tmp_path / "kbs/kbs.toml").write_text(good.replace(old, new, 1))
        assert main(["kbs", "serve", "--dir", str(tmp_path / "kbs")]) == 2
