"""KBS-001..003: from attestation to resource, and everything that must not get one. A real KBS over HTTPS."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs import connections
from enclave_cc.simulator.platform import Condition
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.transport.https import HttpsClient, Response
from enclave_cc.wire.rcar import binding, messages
from enclave_cc.wire.rcar.initdata import InitData

KEY = "default/image-key/one"
URI = f"kbs:///{KEY}"
VALUE = os.urandom(32)

INIT_DATA = b'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n"aa.toml" = "[token_configs.kbs]\\nurl = \'https://x\'"\n'


@pytest.fixture(scope="module", autouse=True)
def resource(kbs: Any) -> None:
    kbs.admin.set_resource(KEY, VALUE)


def refused(call: Callable[[], object]) -> EnclaveCcError:
    with pytest.raises(EnclaveCcError) as caught:
        call()
    return caught.value


class RawAttester:
    """Speaks RCAR by hand, so that each part of it can be wrong."""

    def __init__(self, kbs: Any, platform: Any, *, key: TeeKey | None = None) -> None:
        self.http = HttpsClient(kbs.url, certificate_pem=kbs.certificate, deadline=10, keep_alive=False)
        self.platform = platform
        self.key = key or TeeKey.generate()
        self.nonce = ""
        self.cookie: str | None = None

    def auth(self, body: bytes | None = None) -> Response:
        answer = self.http.request("POST", "/kbs/v0/auth", body or messages.Request("sgx").encode())
        if answer.status == 200:
            self.nonce, self.cookie = messages.Challenge.parse(answer.body).nonce, answer.cookie(messages.COOKIE)
        return answer

    def evidence(self, *, nonce: str | None = None, key: TeeKey | None = None, additional: str = "") -> dict[str, Any]:
        """The body of an honest attestation, to be changed."""
        nonce, key = self.nonce if nonce is None else nonce, key or self.key
        quote = self.platform.quote(binding.pad(binding.compute_report_data(nonce, key.public, additional)))
        made = messages.Attestation(nonce, key.public, messages.encode_sgx_evidence(quote), additional)
        return json.loads(made.encode())  # type: ignore[no-any-return]

    def attest(self, body: object, *, cookie: str | None = None) -> Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.request("POST", "/kbs/v0/attest", raw, self._cookie(cookie))

    def get(self, path: str = KEY, headers: dict[str, str] | None = None) -> Response:
        return self.http.request("GET", f"/kbs/v0/resource/{path}", None, self._cookie(None) if headers is None else headers)

    def _cookie(self, cookie: str | None) -> dict[str, str]:
        value = cookie if cookie is not None else self.cookie
        return {} if value is None else {"Cookie": f"{messages.COOKIE}={value}"}


def problem(answer: Response) -> messages.Problem:
    return messages.Problem.parse(answer.body)


# --- what works


def test_an_attested_enclave_gets_its_key(kbs: Any, enclave: Any) -> None:
    assert kbs.client(enclave).get(URI) == VALUE
    released = [event for event in kbs.events("allow") if event["stage"] == "release"][-1]
    assert released["resource"] == f"resource/{KEY}"
    (attester,) = released["attester"]
    assert (attester["status"], attester["root"], attester["simulated"]) == ("affirming", "here", True)


def test_init_data_is_bound_by_configid(kbs: Any, platform_of: Callable[..., Any]) -> None:
    digest = InitData.parse(INIT_DATA.decode()).digest()
    honest = platform_of(config_id=binding.pad(digest))
    assert kbs.client(honest, init_data=INIT_DATA).get(URI) == VALUE
    other = kbs.client(honest, init_data=INIT_DATA.replace(b"https://x", b"https://y"))
    assert refused(lambda: other.get(URI)).code == "quote-refused"


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
def test_every_form_of_tee_key(kbs: Any, enclave: Any, kind: str) -> None:
    raw = RawAttester(kbs, enclave, key=TeeKey.generate(kind))
    raw.auth()
    assert raw.attest(raw.evidence()).status == 200
    assert jwe.decrypt(raw.get().body, raw.key).reveal() == VALUE


def test_wire_as_upstream_has_it(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    request = b'{"version":"0.4.0","tee":"sgx","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}'
    answer = raw.auth(request)
    challenge = json.loads(answer.body)
    assert set(challenge) == {"nonce", "extra-params"}
    assert challenge["extra-params"] == ""
    assert len(base64.b64decode(challenge["nonce"])) == 32
    cookie = answer.header("set-cookie") or ""
    assert cookie.startswith("kbs-session-id=")
    assert "; Expires=" in cookie
    assert "Path" not in cookie
    answer = raw.attest(raw.evidence())
    assert answer.header("content-type") == "application/json"
    token = json.loads(answer.body)["token"]
    header, payload = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
    assert (header["typ"], header["alg"], header["jwk"]["crv"]) == ("JWT", "ES256", "P-256")
    assert header["jwk"]["x5c"]
    assert payload["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert payload["exp"] - payload["iat"] == 300
    cpu = payload["submods"]["cpu0"]
    assert cpu["ear.status"] == "affirming"
    assert cpu["ear.appraisal-policy-id"] == "default"
    evidence = cpu["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"]["tee-pubkey"] == dict(raw.key.public.members)
    assert evidence["sgx"]["body"]["mr_enclave"] == enclave.identity.mr_enclave.hex()
    assert "report_data" in evidence
    assert "init_data" in evidence
    sealed = json.loads(raw.get().body)
    assert set(sealed) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    keys = json.loads(raw.http.request("GET", "/.well-known/jwks.json").body)["keys"]
    assert keys[0]["x"] == header["jwk"]["x"]


def test_a_token_serves_instead_of_a_session(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    token = json.loads(raw.attest(raw.evidence()).body)["token"]
    answer = raw.get(headers={"Authorization": f"Bearer {token}"})
    assert jwe.decrypt(answer.body, raw.key).reveal() == VALUE
    assert raw.get(headers={"Authorization": f"Bearer {token}", "Cookie": f"{messages.COOKIE}={'0' * 32}"}).status == 200


def test_a_token_with_a_large_configuration_serves_too(kbs: Any, platform_of: Callable[..., Any]) -> None:
    """Tokens carry the claims of init-data: the KBS's certificate and the node's authorities are a few kB."""
    trusted = "".join(f"# {n}\n{kbs.certificate}" for n in range(12))
    configuration = {"aa.toml": f"[token_configs.kbs]\ncert = {json.dumps(kbs.certificate)}\n", "cdh.toml": trusted}
    entries = "".join(f"{json.dumps(name)} = {json.dumps(text)}\n" for name, text in configuration.items())
    init_data = f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n{entries}'
    raw = RawAttester(kbs, platform_of(config_id=binding.pad(InitData.parse(init_data).digest())))
    raw.auth()
    body = {**raw.evidence(), "init-data": {"format": "toml", "body": init_data}}
    token = json.loads(raw.attest(body).body)["token"]
    assert len(token) > 12_000
    answer = raw.get(headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200, answer.body
    assert jwe.decrypt(answer.body, raw.key).reveal() == VALUE
    assert raw.get(headers={"Authorization": f"Bearer {'x' * connections.MAX_FIELD}"}).status == 400
    assert raw.get(headers={f"X-{n}": "" for n in range(connections.MAX_FIELDS)}).status == 400


def test_an_attested_session_keeps_its_token(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    first = raw.attest(raw.evidence()).body
    assert raw.attest(b"{}").body == first


def test_many_attesters_at_once(kbs: Any, enclave: Any) -> None:
    wrong: list[object] = []

    def attest() -> None:
        try:
            client = kbs.client(enclave)
            for _ in range(3):
                if client.get(URI) != VALUE:
                    wrong.append("value")
        except EnclaveCcError as error:
            wrong.append(error)

    threads = [threading.Thread(target=attest) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_of_one_client_share_one_handshake(kbs: Any, enclave: Any) -> None:
    before = len([event for event in kbs.events("allow") if event["stage"] == "attest"])
    client = kbs.client(enclave)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(client.get(URI))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [VALUE] * 8
    assert len([event for event in kbs.events("allow") if event["stage"] == "attest"]) == before + 1


# --- evidence that is not good enough


def assert_denied(kbs: Any, error: EnclaveCcError, code: str) -> dict[str, Any]:
    """The client sees a code and an id; the owner finds the reasons under that id; returns them."""
    assert error.code == code, error
    ident = error.what.rsplit("id ", 1)[-1]
    assert ident.isalnum()
    decision = kbs.admin.explain(ident)
    assert (decision["outcome"], decision["code"]) == ("deny", code)
    assert [event for event in kbs.events("deny") if event["id"] == ident]
    return decision  # type: ignore[no-any-return]


def test_an_unknown_measurement(kbs: Any, platform_of: Callable[..., Any]) -> None:
    before = len(kbs.events("deny"))
    error = refused(lambda: kbs.client(platform_of(mr_enclave=bytes(32))).get(URI))
    decision = assert_denied(kbs, error, "measurement-unknown")
    reason = decision["reasons"][0]["because"][0]["because"][0]
    assert (reason["claim"], reason["found"]) == ("sgx.body.mr_enclave", bytes(32).hex())
    assert bytes(range(32)).hex() in reason["expected"]
    assert len(kbs.events("deny")) == before + 1
    # The host sees neither what was expected nor that the resource exists.
    assert bytes(range(32)).hex() not in str(error)
    told = kbs.cli("explain", decision["id"]).stdout
    assert "measurement-unknown" in told
    assert f"found     {bytes(32).hex()}" in told
    assert f"expected  {bytes(range(32)).hex()}" in told
    absent = refused(lambda: kbs.client(platform_of(mr_enclave=bytes(32))).get("kbs:///no/such/key"))
    assert absent.code == "measurement-unknown"


def test_a_debug_enclave(kbs: Any, platform_of: Callable[..., Any]) -> None:
    assert_denied(kbs, refused(lambda: kbs.client(platform_of(debug=True)).get(URI)), "debug-enclave")


def test_a_root_that_nobody_named(kbs: Any, platform_of: Callable[..., Any], tmp_path: Path) -> None:
    stranger = platform_of(on=SimulatedMachine.create(tmp_path / "stranger"))
    assert_denied(kbs, refused(lambda: kbs.client(stranger).get(URI)), "untrusted-root")


def test_a_missing_resource(kbs: Any, enclave: Any) -> None:
    assert_denied(kbs, refused(lambda: kbs.client(enclave).get("kbs:///default/image-key/absent")), "key-missing")


def test_the_policy_says_no(kbs: Any, enclave: Any, tmp_path: Path) -> None:
    before = kbs.cli("policy", "get", "release").stdout
    deny = 'package policy\nimport rego.v1\ndefault allow := false\nallow if data["resource-path"][0] == "other"\n'
    client = kbs.client(enclave)
    assert client.get(URI) == VALUE
    kbs.admin.set_policy("release", deny)
    try:
        decision = assert_denied(kbs, refused(lambda: client.get(URI)), "kbs-denied")
        assert "resource-policy" in decision["reasons"][0]["rule"]
    finally:
        kbs.admin.set_policy("release", before)
    assert client.get(URI) == VALUE


def test_an_attestation_policy_judges_init_data(kbs: Any, enclave: Any, platform_of: Callable[..., Any]) -> None:
    """An owner may bind what the host configured: the KBS's URL that the agent was told, for instance."""
    before = kbs.admin.get_policy("attestation")["text"]
    kbs.admin.set_policy(
        "attestation",
        "package policy\nimport rego.v1\ndefault c := 36\n"
        'c := 2 if input.init_data_claims["aa.toml"].token_configs.kbs.url == "https://x"\n'
        'trust_claims := {"configuration": c}\n',
    )
    try:
        bound = platform_of(config_id=binding.pad(InitData.parse(INIT_DATA.decode()).digest()))
        assert kbs.client(bound, init_data=INIT_DATA).get(URI) == VALUE
        assert refused(lambda: kbs.client(enclave).get(URI)).code == "kbs-denied"
    finally:
        kbs.admin.set_policy("attestation", before)


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        (Condition(tcb_status="OutOfDate", advisory_ids=("INTEL-SA-00001",)), "tcb-refused"),
        (Condition(tcb_status="Revoked"), "tcb-refused"),
        (Condition(pck_revoked=True), "quote-refused"),
    ],
)
def test_platforms_that_fell_behind(
    kbs: Any, enclave: Any, machine: SimulatedMachine, tmp_path: Path, condition: Condition, code: str
) -> None:
    good = tmp_path / "good.json"
    good.write_bytes(machine.collateral(int(time.time())).encode())
    bad = tmp_path / "bad.json"
    bad.write_bytes(machine.collateral(int(time.time()), condition).encode())
    root = tmp_path / "root.pem"
    root.write_text(machine.root_certificate_pem())
    name = ("kbs", "root", "add", "here", "--certificate", str(root), "--simulated", "--collateral")
    kbs.cli(*name, str(bad))
    try:
        assert_denied(kbs, refused(lambda: kbs.client(enclave).get(URI)), code)
    finally:
        kbs.cli(*name, str(good))
    assert kbs.client(enclave).get(URI) == VALUE


# --- protocol abuse


def test_evidence_for_another_nonce_or_key(kbs: Any, enclave: Any) -> None:
    for change in ({"nonce": base64.b64encode(bytes(32)).decode()}, {"key": TeeKey.generate()}, {"additional": "x"}):
        raw = RawAttester(kbs, enclave)
        raw.auth()
        body = raw.evidence(**change)  # type: ignore[arg-type]
        honest = raw.evidence()
        honest["tee-evidence"]["primary_evidence"] = body["tee-evidence"]["primary_evidence"]
        answer = raw.attest(honest)
        assert (answer.status, problem(answer).code) == (401, "quote-refused")
        assert raw.get().status == 401


def test_an_attestation_is_good_for_one_session(kbs: Any, enclave: Any) -> None:
    first, second = RawAttester(kbs, enclave), RawAttester(kbs, enclave)
    first.auth()
    second.auth()
    body = first.evidence()
    assert second.attest(body).status == 401  # another session's nonce
    assert first.attest(body).status == 200


def test_a_challenge_is_answered_once(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    body = raw.evidence()
    assert raw.attest({**body, "runtime-data": {**body["runtime-data"], "nonce": "other"}}).status == 401
    answer = raw.attest(body)
    assert (answer.status, problem(answer).code) == (401, "unauthenticated")


@pytest.mark.parametrize("cookie", ["", "0" * 32, "' OR 1=1 --", "../../kbs.db", "x" * 4000])
def test_sessions_cannot_be_guessed(kbs: Any, enclave: Any, cookie: str) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    assert raw.attest(raw.evidence(), cookie=cookie).status == 401
    assert raw.get(headers={"Cookie": f"{messages.COOKIE}={cookie}"}).status == 401


def test_without_attesting(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    answer = raw.get()
    assert (answer.status, problem(answer).variant) == (401, "TokenNotFound")
    assert raw.get(headers={}).status == 401


def test_tokens_of_others(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    token = json.loads(raw.attest(raw.evidence()).body)["token"]
    head, payload, signature = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    stranger = SigningKey.generate("ES256")
    forged = [
        stranger.sign(claims, {"jwk": stranger.public.to_jwk()}),  # the header's own key proves nothing
        f"{none}.{payload}.",
        f"{head}.{payload}.",
        f"{head}.{payload[:-4]}AAAA.{signature}",
        "a.b.c",
        "",
    ]
    for text in forged:
        assert raw.get(headers={"Authorization": f"Bearer {text}"}).status == 401
    own = SigningKey.from_pem((kbs.directory / "token.key").read_bytes())
    for change in ({"exp": int(time.time()) - 100}, {"exp": "never"}, {"submods": []}):
        expired = own.sign({**claims, **change})
        assert raw.get(headers={"Authorization": f"Bearer {expired}"}).status == 401


@pytest.mark.parametrize("tee", ["sample", "tdx", "snp", "nvidia"])
def test_other_kinds_of_evidence_must_be_named(kbs: Any, enclave: Any, tee: str) -> None:
    answer = RawAttester(kbs, enclave).auth(messages.Request(tee).encode())
    assert (answer.status, problem(answer).code) == (401, "quote-refused")
    decision = kbs.admin.explain(problem(answer).id)
    assert decision["reasons"][0]["expected"] == ["sgx"]


def test_devices_need_a_verifier(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    answer = raw.attest(raw.evidence(additional='{"nvidia":{"x":1}}'))
    assert (answer.status, problem(answer).code) == (401, "quote-refused")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[" * 10_000, 400),
        (b'{"version":"0.1.1","tee":"sgx","extra-params":""}', 401),
        (b'{"version":"0.4.0","tee":"sgx"}', 400),
    ],
)
def test_broken_openings(kbs: Any, enclave: Any, body: bytes, status: int) -> None:
    answer = RawAttester(kbs, enclave).http.request("POST", "/kbs/v0/auth", body)
    assert answer.status == status
    assert problem(answer).variant


def test_broken_quotes(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    good = base64.b64decode(raw.evidence()["tee-evidence"]["primary_evidence"]["quote"])
    for quote in (b"", good[:400], good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:], good[:200] + b"\0" * 8 + good[208:]):
        raw.auth()
        body = raw.evidence()
        body["tee-evidence"]["primary_evidence"] = {"quote": base64.b64encode(quote).decode()}
        answer = raw.attest(body)
        assert answer.status == 401
        assert problem(answer).code in ("malformed", "quote-refused")
    for evidence in (None, 5, [], {"quote": 5}, {"quote": "!"}):
        raw.auth()
        body = raw.evidence()
        body["tee-evidence"]["primary_evidence"] = evidence
        assert raw.attest(body).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "../../../etc/passwd",
        "a/b",
        "a/b/c/d",
        "a/./b",
        "a/%2e%2e/b",
        "a/b/c%00",
        "a/b/c%2Fd",
        "%61/b/c",
        "a//b",
        "'/or/1=1--",
        ".a/b/c",
    ],
)
def test_paths_that_are_no_resource(kbs: Any, enclave: Any, path: str) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    raw.attest(raw.evidence())
    answer = raw.get(path)
    assert (answer.status, problem(answer).variant) == (404, "InvalidRequestPath")


def test_unknown_paths_and_methods(kbs: Any, enclave: Any) -> None:
    http = RawAttester(kbs, enclave).http
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/kbs/v0/", 404),
        ("GET", "/kbs/v0/nebula-ca/x", 404),
        ("GET", "/kbs/v0/auth", 405),
        ("PUT", "/kbs/v0/attest", 405),
        ("PATCH", "/kbs/v0/resource/a/b/c", 405),
        ("GET", "/kbs/v1/auth", 404),
    ):
        answer = http.request(method, path)
        assert (answer.status, bool(problem(answer).detail)) == (status, True), path
    assert http.request("GET", "/healthz").status == 200


def test_no_secret_in_the_log(kbs: Any, enclave: Any) -> None:
    raw = RawAttester(kbs, enclave)
    raw.auth()
    token = json.loads(raw.attest(raw.evidence()).body)["token"]
    raw.get()
    text = kbs.log.read_text()
    assert "bug" not in {event["event"] for event in kbs.events()}
    for secret in (raw.cookie or "?", token, token.split(".")[2], VALUE.hex(), base64.b64encode(VALUE).decode()):
        assert secret not in text
