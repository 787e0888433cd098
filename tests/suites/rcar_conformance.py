"""RCAR 0.4.0 as a client sees it: what every KBS that speaks it must do. Written from the protocol's description
(endpoints, bodies, report-data binding, keys and JWE, token, admin API), not from our code: this module uses none of it.

A subclass gives a `target` fixture (`Target`). `tests/suites/rcar_driver.py` points it at a KBS by URL, for instance at
Trustee's. Where Trustee answers 401 to everything and its documentation has 403 and 404, `Target.statuses` says which is
expected.
"""

from __future__ import annotations

import base64
import copy
import datetime
import email.utils
import functools
import hashlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.x509 import load_der_x509_certificate

PREFIX = "/kbs/v0"
COOKIE = "kbs-session-id"
ERRORS = "https://github.com/confidential-containers/kbs/errors/"
EVIDENCE = "ear.veraison.annotated-evidence"
# How Trustee's code answers, and how its documentation says it should.
DOCUMENTED = {"denied": 403, "missing": 404, "forbidden": 403, "malformed": 400}
UPSTREAM = {"denied": 401, "missing": 401, "forbidden": 401, "malformed": 401}

ALLOW_ALL = "package policy\nimport rego.v1\ndefault allow := true\n"
DENY_ALL = "package policy\nimport rego.v1\ndefault allow := false\n"


def b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def un_b64u(text: str) -> bytes:
    assert re.fullmatch(r"[A-Za-z0-9_-]*", text), text  # no padding
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def canonical(value: object) -> bytes:
    """RFC 8785, of what RCAR hashes: ASCII names, texts, no numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def report_data(nonce: str, key: Mapping[str, str], additional: str = "") -> bytes:
    """48 bytes: SHA-384 over the runtime data of the primary TEE."""
    return hashlib.sha384(canonical({"additional-evidence": additional, "nonce": nonce, "tee-pubkey": dict(key)})).digest()


def device_report_data(nonce: str, key: Mapping[str, str]) -> bytes:
    return hashlib.sha384(canonical({"nonce": nonce, "tee-pubkey": dict(key)})).digest()


def sample_evidence(data: bytes) -> dict[str, str]:
    return {"svn": "1", "report_data": base64.b64encode(data).decode()}


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def cookie(self) -> str:
        (value,) = [value for key, value in self.headers if key.lower() == "set-cookie" and value.startswith(f"{COOKIE}=")]
        return value[len(COOKIE) + 1 :].split(";")[0]


@functools.cache
def make_context(certificate: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificate)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


@dataclass
class Target:
    """A KBS. `attest(report data, 48 bytes)` makes evidence of kind `tee` that it accepts; `admin_token(**claims)` an admin
    token, a claim of None is left out; `stranger_token` likewise, by a key that it does not know."""

    url: str
    attest: Callable[[bytes], Any]
    admin_token: Callable[..., str]
    stranger_token: Callable[..., str]
    tee: str = "sample"
    certificate: str | None = None
    statuses: Mapping[str, int] = field(default_factory=lambda: dict(DOCUMENTED))
    admits_rsa1_5: bool = False
    lifetime: int = 300
    devices: bool = True

    def request(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=30, context=make_context(self.certificate)
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def admin(self, method: str, path: str, body: bytes | None = None) -> Answer:
        return self.request(method, PREFIX + path, body, {"Authorization": f"Bearer {self.admin_token()}"})

    def set_release_policy(self, text: str) -> None:
        body = json.dumps({"policy": b64u(text.encode())}).encode()
        assert self.admin("POST", "/resource-policy", body).status == 200


class TeeKey:
    """A TEE key pair in one of the protocol's forms; decrypts as guest-components does."""

    def __init__(self, kind: str) -> None:
        self.private: Any
        if kind.startswith("RSA"):
            self.private = rsa.generate_private_key(65537, 2048)
            numbers = self.private.public_key().public_numbers()
            self.jwk = {"kty": "RSA", "alg": kind, "n": b64u(numbers.n.to_bytes(256)), "e": b64u(numbers.e.to_bytes(3))}
        else:
            self.private = ec.generate_private_key(ec.SECP256R1() if kind == "P-256" else ec.SECP521R1())
            numbers = self.private.public_key().public_numbers()
            size = 32 if kind == "P-256" else 66
            x, y = (b64u(each.to_bytes(size)) for each in (numbers.x, numbers.y))
            self.jwk = {"kty": "EC", "crv": kind, "alg": "ECDH-ES+A256KW", "x": x, "y": y}

    def decrypt(self, response: Mapping[str, str]) -> bytes:
        """As `kbs_protocol/src/keypair.rs`: the header is parsed into a struct and written again to make the additional
        data: `alg`, `enc`, then the other members, each object's names sorted."""
        header = json.loads(un_b64u(response["protected"]))
        others = {name: header[name] for name in sorted(header) if name not in ("alg", "enc")}
        again = json.dumps({"alg": header["alg"], "enc": header["enc"], **_sorted(others)}, separators=(",", ":"))
        cek = self._unwrap(header, un_b64u(response["encrypted_key"]))
        sealed = un_b64u(response["ciphertext"]) + un_b64u(response["tag"])
        return AESGCM(cek).decrypt(un_b64u(response["iv"]), sealed, b64u(again.encode()).encode())

    def _unwrap(self, header: Mapping[str, Any], wrapped: bytes) -> bytes:
        assert header["enc"] == "A256GCM"
        assert header["alg"] == self.jwk["alg"]
        if header["alg"] == "RSA-OAEP-256":
            return self.private.decrypt(wrapped, padding.OAEP(padding.MGF1(SHA256()), SHA256(), None))  # type: ignore[no-any-return]
        if header["alg"] == "RSA1_5":
            return self.private.decrypt(wrapped, padding.PKCS1v15())  # type: ignore[no-any-return]
        epk = header["epk"]
        assert epk["crv"] == self.jwk["crv"]
        x, y = (int.from_bytes(un_b64u(epk[name])) for name in ("x", "y"))
        sender = ec.EllipticCurvePublicNumbers(x, y, self.private.curve).public_key()
        algorithm = b"ECDH-ES+A256KW"
        info = len(algorithm).to_bytes(4) + algorithm + bytes(8) + (256).to_bytes(4)
        kek = ConcatKDFHash(SHA256(), 32, info).derive(self.private.exchange(ec.ECDH(), sender))
        return aes_key_unwrap(kek, wrapped)


def _sorted(value: Any) -> Any:
    return {name: _sorted(value[name]) for name in sorted(value)} if isinstance(value, dict) else value


class Attester:
    """One handshake, step by step, so that each step can be wrong."""

    def __init__(self, target: Target, kind: str = "P-256") -> None:
        self.target = target
        self.key = TeeKey(kind)
        self.nonce = self.cookie = self.token = ""

    def auth(self, **changes: Any) -> Answer:
        body = {"version": "0.4.0", "tee": self.target.tee, "extra-params": {"supported-hash-algorithms": ["sha384"]}, **changes}
        body = {name: value for name, value in body.items() if value is not ...}
        answer = self.target.request("POST", f"{PREFIX}/auth", json.dumps(body).encode(), {"Content-Type": "application/json"})
        if answer.status == 200:
            self.nonce, self.cookie = answer.json["nonce"], answer.cookie
        return answer

    def attestation(self, *, additional: str = "", key: Mapping[str, str] | None = None) -> dict[str, Any]:
        """An honest attestation of this session, to be changed."""
        key = self.key.jwk if key is None else key
        data = report_data(self.nonce, key, additional)
        return {
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": dict(key)},
            "tee-evidence": {"primary_evidence": self.target.attest(data), "additional_evidence": additional},
        }

    def attest(self, body: Any = None, *, cookie: str | None = None) -> Answer:
        headers = {"Content-Type": "application/json", "Cookie": f"{COOKIE}={self.cookie if cookie is None else cookie}"}
        answer = self.target.request("POST", f"{PREFIX}/attest", json.dumps(body or self.attestation()).encode(), headers)
        if answer.status == 200:
            self.token = answer.json["token"]
        return answer

    def get(self, path: str, *, by: str = "cookie") -> Answer:
        headers = {"Cookie": f"{COOKIE}={self.cookie}"} if by == "cookie" else {"Authorization": f"Bearer {self.token}"}
        return self.target.request("GET", PREFIX + path, None, headers)

    def ready(self) -> Attester:
        assert self.auth().status == 200
        answer = self.attest()
        assert answer.status == 200, answer.body
        return self


def is_problem(answer: Answer, *variants: str) -> bool:
    """The Error JSON. Which variant belongs to which error is Trustee's code's affair; ours is held to it."""
    problem = answer.json
    assert isinstance(problem["detail"], str)
    assert problem["type"].startswith(ERRORS)
    return not variants or problem["type"].removeprefix(ERRORS) in variants


VALUE = bytes(range(256)) * 3
RESOURCE = "/resource/conformance/key/one"


class RcarConformance:
    """Table numbers are those of the protocol's description."""

    @pytest.fixture(autouse=True)
    def _prepared(self, target: Target) -> None:
        target.set_release_policy(ALLOW_ALL)
        assert target.admin("POST", RESOURCE, VALUE).status == 200

    # --- 1.1 endpoints

    def test_auth_gives_a_challenge_and_a_session(self, target: Target) -> None:
        answer = Attester(target).auth()
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert sorted(answer.json) == ["extra-params", "nonce"]
        assert len(base64.b64decode(answer.json["nonce"], validate=True)) == 32
        assert len(answer.json["nonce"]) == 44
        assert answer.json["extra-params"] == ""
        cookie = answer.header("set-cookie") or ""
        assert re.fullmatch(rf"{COOKIE}=[0-9A-Za-z_-]{{32,}}; Expires=[^;]+", cookie)
        other = Attester(target)
        other.auth()
        assert (other.nonce, other.cookie) != (answer.json["nonce"], answer.cookie)

    def test_a_session_lives_its_time_and_attesting_does_not_prolong_it(self, target: Target) -> None:
        attester = Attester(target)
        before = time.time()
        first = attester.auth().header("set-cookie") or ""
        second = attester.attest().header("set-cookie") or ""
        assert first == second
        expires = email.utils.parsedate_to_datetime(first.split("Expires=")[1])
        left = expires.timestamp() - before
        assert target.lifetime - 2 <= left <= target.lifetime + 5

    def test_attest_gives_a_token(self, target: Target) -> None:
        attester = Attester(target)
        attester.auth()
        answer = attester.attest()
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert list(answer.json) == ["token"]
        assert answer.cookie == attester.cookie

    def test_an_attested_session_keeps_its_token(self, target: Target) -> None:
        """Without a look at the evidence."""
        attester = Attester(target).ready()
        body = attester.attestation()
        body["tee-evidence"]["primary_evidence"] = {}
        answer = attester.attest(body)
        assert (answer.status, answer.json["token"]) == (200, attester.token)

    @pytest.mark.parametrize("by", ["cookie", "bearer"])
    def test_a_resource_by_session_or_token(self, target: Target, by: str) -> None:
        attester = Attester(target).ready()
        answer = attester.get(RESOURCE, by=by)
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert attester.key.decrypt(answer.json) == VALUE

    def test_a_session_that_is_gone_and_a_token(self, target: Target) -> None:
        attester = Attester(target).ready()
        headers = {"Cookie": f"{COOKIE}={'0' * 32}", "Authorization": f"Bearer {attester.token}"}
        answer = target.request("GET", PREFIX + RESOURCE, None, headers)
        assert answer.status in (200, 401)  # Trustee looks no further than the cookie
        if answer.status == 200:
            assert attester.key.decrypt(answer.json) == VALUE

    def test_a_resource_is_written_and_removed_as_it_is(self, target: Target) -> None:
        attester = Attester(target).ready()
        path = "/resource/conformance/key/two"
        for value in (b"\0\xff raw", b"", b"{}" * 1000):
            answer = target.admin("POST", path, value)
            assert (answer.status, answer.body) == (200, b"")
            assert attester.key.decrypt(attester.get(path).json) == value
        assert target.admin("DELETE", path).status == 200
        assert attester.get(path).status == target.statuses["missing"]

    @pytest.mark.parametrize("name", ["a", "A-b_c.d", "-x", "_", "0", "a..b", "v1.0.tar"])
    def test_segments(self, target: Target, name: str) -> None:
        path = f"/resource/conformance/{name}/{name}"
        assert target.admin("POST", path, b"x").status == 200
        attester = Attester(target).ready()
        assert attester.key.decrypt(attester.get(path).json) == b"x"
        assert target.admin("DELETE", path).status == 200

    @pytest.mark.parametrize(
        "path", ["a/b", "a", "", "a/b/c/d", "a/b/", "a//c", "a/b/.c", "./b/c", "../b/c", "a/b/c%00", "a/b/%2e"]
    )
    def test_what_is_no_resource_path(self, target: Target, path: str) -> None:
        answer = Attester(target).ready().get(f"/resource/{path}")
        assert answer.status in (404, target.statuses["missing"])
        assert is_problem(answer)

    def test_upstream_s_admin_paths(self, target: Target) -> None:
        policy = b64u(ALLOW_ALL.encode())
        assert target.admin("POST", "/resource-policy", json.dumps({"policy": policy}).encode()).status == 200
        assert "resource-policy" in target.admin("GET", "/resource-policy").json
        payload = base64.b64encode(b'{"conformance_value":["a","b"]}').decode()
        message = json.dumps({"version": "0.1.0", "type": "sample", "payload": payload}).encode()
        assert target.admin("POST", "/reference-value", message).status == 200
        assert target.admin("GET", "/reference-value/conformance_value").json == ["a", "b"]
        assert target.admin("GET", "/reference-value/conformance/absent").json is None
        attestation = 'package policy\nimport rego.v1\ntrust_claims := {"hardware": 2}\n'
        body = {"type": "rego", "policy_id": "conformance_cpu", "policy": b64u(attestation.encode())}
        assert target.admin("POST", "/attestation-policy", json.dumps(body).encode()).status == 200

    def test_unknown_plugins(self, target: Target) -> None:
        answer = Attester(target).ready().get("/no-such-plugin/a/b")
        assert answer.status == 404
        assert is_problem(answer, "PluginNotFound")

    def test_health_and_metrics(self, target: Target) -> None:
        answer = target.request("GET", "/healthz")
        assert (answer.status, answer.body) == (200, b"")
        answer = target.request("GET", "/metrics")
        assert answer.status == 200
        assert b"# TYPE kbs_http_requests_total counter" in answer.body

    # --- 1.2 bodies, versions, errors

    @pytest.mark.parametrize(
        "version",
        ["0.1.1", "0.2.0", "0.3.0", "0.4.1", "0.5.0", "1.0.0", "0.4", "0.4.0.0", "v0.4.0", " 0.4.0", "0.4.0-rc1", "", "x"],
    )
    def test_other_versions(self, target: Target, version: str) -> None:
        answer = Attester(target).auth(version=version)
        assert answer.status == 401
        assert is_problem(answer, "AttestationError")
        assert answer.header("set-cookie") is None

    @pytest.mark.parametrize(
        "changes",
        [{"version": ...}, {"tee": ...}, {"extra-params": ...}, {"version": 4}, {"tee": 5}, {"tee": None}, {"tee": ["sample"]}],
        ids=str,
    )
    def test_requests_that_lack_something(self, target: Target, changes: dict[str, Any]) -> None:
        answer = Attester(target).auth(**changes)
        assert answer.status == target.statuses["malformed"]
        assert is_problem(answer)

    @pytest.mark.parametrize("extra", ["", {}, None, [], 5, {"supported-hash-algorithms": ["sm3"]}, {"a": {"b": 1}}], ids=str)
    def test_extra_parameters_are_any_json(self, target: Target, extra: Any) -> None:
        assert Attester(target).auth(**{"extra-params": extra}).status == 200

    def test_unknown_kinds_of_tee(self, target: Target) -> None:
        answer = Attester(target).auth(tee="no-such-tee")
        assert answer.status in (401, target.statuses["malformed"])
        assert is_problem(answer)

    @pytest.mark.parametrize(
        "path",
        [
            ("runtime-data",),
            ("tee-evidence",),
            ("runtime-data", "nonce"),
            ("runtime-data", "tee-pubkey"),
            ("tee-evidence", "primary_evidence"),
            ("tee-evidence", "additional_evidence"),
        ],
        ids=".".join,
    )
    def test_attestations_that_lack_something(self, target: Target, path: tuple[str, ...]) -> None:
        attester = Attester(target)
        attester.auth()
        body = attester.attestation()
        inner = body
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        answer = attester.attest(body)
        assert answer.status == target.statuses["malformed"]
        assert is_problem(answer)

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"x"', b"{}garbage"])
    def test_bodies_that_are_no_object(self, target: Target, body: bytes) -> None:
        attester = Attester(target)
        attester.auth()
        for path, cookie in (("/auth", ""), ("/attest", attester.cookie)):
            answer = target.request("POST", PREFIX + path, body, {"Cookie": f"{COOKIE}={cookie}"})
            assert answer.status == target.statuses["malformed"]
            assert is_problem(answer)

    def test_init_data_is_toml(self, target: Target) -> None:
        attester = Attester(target)
        attester.auth()
        for form in ("json", "yaml", "TOML", "", None, 5):
            body = attester.attestation() | {"init-data": {"format": form, "body": "{}"}}
            answer = attester.attest(body)
            assert answer.status == target.statuses["malformed"]
            assert is_problem(answer)

    def test_init_data_goes_into_the_token(self, target: Target) -> None:
        if target.tee != "sample":
            pytest.skip("only sample evidence accepts any init-data")
        text = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"x.txt" = "hello"\n"cdh.toml" = "a = 1"\n'
        attester = Attester(target)
        attester.auth()
        answer = attester.attest(attester.attestation() | {"init-data": {"format": "toml", "body": text}})
        assert answer.status == 200
        evidence = payload_of(attester.token)["submods"]["cpu0"][EVIDENCE]
        assert evidence["init_data_claims"] == {"x.txt": "hello", "cdh.toml": {"a": 1}}
        digest = hashlib.sha384(text.encode()).digest()
        assert evidence["init_data"] in (base64.b64encode(digest).decode(), digest.hex())

    def test_cookies_that_open_nothing(self, target: Target) -> None:
        attester = Attester(target)
        attester.auth()
        for cookie in ("", "0" * 32, attester.cookie[:-1], attester.cookie + "0", attester.cookie.swapcase() + "_", "../../etc"):
            answer = attester.attest(cookie=cookie)
            assert answer.status == 401
            assert is_problem(answer)
        body = json.dumps(attester.attestation()).encode()
        assert target.request("POST", f"{PREFIX}/attest", body).status == 401

    def test_a_resource_needs_an_attested_session(self, target: Target) -> None:
        attester = Attester(target)
        attester.auth()
        answer = attester.get(RESOURCE)
        assert answer.status == 401
        assert is_problem(answer, "TokenNotFound", "TokenVerifierError")
        answer = target.request("GET", PREFIX + RESOURCE)
        assert (answer.status, is_problem(answer, "TokenNotFound", "TokenVerifierError")) == (401, True)

    def test_a_denial_by_policy(self, target: Target) -> None:
        attester = Attester(target).ready()
        target.set_release_policy(DENY_ALL)
        answer = attester.get(RESOURCE)
        assert answer.status == target.statuses["denied"]
        assert is_problem(answer, "PolicyDeny")
        # Before the path is looked up: a denied attester learns no names.
        assert attester.get("/resource/conformance/key/absent").status == target.statuses["denied"]

    def test_a_missing_resource(self, target: Target) -> None:
        answer = Attester(target).ready().get("/resource/conformance/key/absent")
        assert answer.status == target.statuses["missing"]
        assert is_problem(answer)

    # --- 1.3 report data

    def test_the_hash_itself(self) -> None:
        """Known answers: Trustee's own of the canonical form, and RFC 7517's key with a nonce of zeros."""
        value = {"b": 1, "a": "test", "c": {"d": "e"}}
        assert hashlib.sha384(canonical(value)).hexdigest() == (
            "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
        )
        key = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ECDH-ES+A256KW",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        }
        assert report_data(base64.b64encode(bytes(32)).decode(), key).hex() == (
            "d4bd1841ef158d7c3904848b81d834cafb2fb888d896151632a2aa5e8c258da20f8ba11735fc30d095f10ed26e055e09"
        )

    def test_evidence_binds_nonce_key_and_devices(self, target: Target) -> None:
        def change_key(body: dict[str, Any]) -> None:
            body["runtime-data"]["tee-pubkey"] = TeeKey("P-256").jwk

        def change_nonce(body: dict[str, Any]) -> None:
            body["runtime-data"]["nonce"] = base64.b64encode(bytes(32)).decode()

        def change_devices(body: dict[str, Any]) -> None:
            body["tee-evidence"]["additional_evidence"] = "{}"

        for change in (change_key, change_nonce, change_devices):
            attester = Attester(target)
            attester.auth()
            body = attester.attestation()
            change(body)
            answer = attester.attest(body)
            assert answer.status == 401
            assert is_problem(answer, "AttestationError")

    def test_another_session_s_evidence(self, target: Target) -> None:
        one, other = Attester(target), Attester(target)
        one.auth()
        other.auth()
        assert other.attest(one.attestation()).status == 401
        forged = one.attestation()
        forged["runtime-data"]["nonce"] = other.nonce
        other.auth()
        assert other.attest(forged).status == 401

    def test_members_of_the_key_that_nobody_knows_are_dropped_before_hashing(self, target: Target) -> None:
        attester = Attester(target)
        attester.auth()
        body = attester.attestation()  # hashes the known members only
        body["runtime-data"]["tee-pubkey"] |= {"kid": "x", "use": "enc", "zzz": {"a": 1}}
        assert attester.attest(body).status == 200
        assert tee_key_of(attester.token) == attester.key.jwk

    def test_members_that_nobody_knows_elsewhere(self, target: Target) -> None:
        attester = Attester(target)
        attester.auth()
        body = attester.attestation()
        body["x"] = body["runtime-data"]["y"] = body["tee-evidence"]["z"] = {"a": [1]}
        assert attester.attest(body).status == 200

    def test_evidence_of_devices(self, target: Target) -> None:
        if not target.devices:
            pytest.skip("this KBS does not know sampledevice")
        for key in (None, TeeKey("P-256").jwk):
            attester = Attester(target)
            attester.auth()
            evidence = sample_evidence(device_report_data(attester.nonce, key or attester.key.jwk))
            answer = attester.attest(attester.attestation(additional=json.dumps({"sampledevice": evidence})))
            assert answer.status == (200 if key is None else 401)
            if key is None:
                assert sorted(payload_of(attester.token)["submods"]) == ["cpu0", "gpu0"]

    def test_devices_that_nobody_knows(self, target: Target) -> None:
        for additional in ('{"no-such-device":{}}', "{", "[]", '{"sampledevice":5}', '"x"'):
            attester = Attester(target)
            attester.auth()
            answer = attester.attest(attester.attestation(additional=additional))
            assert answer.status in (401, target.statuses["malformed"])
            assert is_problem(answer)

    # --- 1.4 keys and JWE

    @pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA-OAEP-256"])
    def test_every_form_of_key(self, target: Target, kind: str) -> None:
        attester = Attester(target, kind)
        attester.ready()
        for size in (0, 1, 31, 100_000):
            value = bytes(size)
            assert target.admin("POST", "/resource/conformance/key/sized", value).status == 200
            response = attester.get("/resource/conformance/key/sized").json
            assert sorted(response) == ["ciphertext", "encrypted_key", "iv", "protected", "tag"]
            assert (len(un_b64u(response["iv"])), len(un_b64u(response["tag"]))) == (12, 16)
            assert len(un_b64u(response["encrypted_key"])) == (256 if kind.startswith("RSA") else 40)
            assert attester.key.decrypt(response) == value

    @pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA-OAEP-256"])
    def test_the_header_is_spelled_as_its_reader_spells_it_again(self, target: Target, kind: str) -> None:
        """guest-components serialises the header anew to get the additional data."""
        attester = Attester(target, kind).ready()
        raw = un_b64u(attester.get(RESOURCE).json["protected"]).decode()
        header = json.loads(raw)
        assert list(header) == ["alg", "enc", "epk"][: len(header)]
        if "epk" in header:
            assert list(header["epk"]) == ["crv", "kty", "x", "y"]
            assert len(un_b64u(header["epk"]["x"])) == (32 if kind == "P-256" else 66)
        assert raw == json.dumps(header, separators=(",", ":"))

    def test_the_deprecated_form_of_key(self, target: Target) -> None:
        attester = Attester(target, "RSA1_5")
        attester.auth()
        answer = attester.attest()
        if target.admits_rsa1_5:
            assert attester.key.decrypt(attester.get(RESOURCE).json) == VALUE
        else:
            assert answer.status == target.statuses["malformed"]
            assert is_problem(answer)

    def test_keys_that_are_none(self, target: Target) -> None:
        good, rsa_key = TeeKey("P-256").jwk, TeeKey("RSA-OAEP-256").jwk
        for key in (
            {},
            {"kty": "oct", "k": "AAAA"},
            {**good, "crv": "P-384"},
            {**good, "crv": "P-521"},
            {**good, "alg": "ECDH-ES"},
            {**good, "alg": "none"},
            {**good, "x": good["y"]},
            {**good, "x": "AA"},
            {**good, "x": good["x"] + "="},
            {**good, "kty": "RSA"},
            {**rsa_key, "alg": "RSA-OAEP"},
            {**rsa_key, "e": "AQ"},
            {**rsa_key, "n": "AQAB"},
        ):
            attester = Attester(target)
            attester.auth()
            answer = attester.attest(attester.attestation(key=key))
            if answer.status == 200:  # Trustee looks at the key when it encrypts
                answer = attester.get(RESOURCE)
            assert answer.status in (401, target.statuses["malformed"]), key
            assert is_problem(answer)

    def test_every_answer_has_its_own_keys(self, target: Target) -> None:
        attester = Attester(target).ready()
        answers = [attester.get(RESOURCE).json for _ in range(4)]
        for name in ("protected", "encrypted_key", "iv", "ciphertext", "tag"):
            assert len({answer[name] for answer in answers}) == 4

    # --- 1.5 token

    def test_the_token_is_an_ear(self, target: Target) -> None:
        before = int(time.time())
        attester = Attester(target).ready()
        header = jwt.get_unverified_header(attester.token)
        assert (header["typ"], header["alg"]) == ("JWT", "ES256")
        jwk = header["jwk"]
        assert (jwk["kty"], jwk["crv"], jwk["alg"]) == ("EC", "P-256", "ES256")
        payload = jwt.decode(attester.token, jwt.PyJWK(jwk), algorithms=["ES256"])
        assert payload["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
        assert before - 2 <= payload["iat"] <= time.time() + 2
        assert 60 <= payload["exp"] - payload["iat"] <= 3600
        assert isinstance(payload["iss"], str)
        assert sorted(payload["ear.verifier-id"]) == ["build", "developer"]
        submod = payload["submods"]["cpu0"]
        assert submod["ear.status"] in ("none", "affirming", "warning", "contraindicated")
        vector = submod["ear.trustworthiness-vector"]
        assert set(vector) <= {
            "instance-identity",
            "configuration",
            "executables",
            "file-system",
            "hardware",
            "runtime-opaque",
            "storage-opaque",
            "sourced-data",
        }
        assert all(type(value) is int and -128 <= value <= 127 for value in vector.values())
        assert submod["ear.status"] == worst_tier(vector)
        assert submod["ear.appraisal-policy-id"] == "default"
        evidence = submod[EVIDENCE]
        assert target.tee in evidence
        assert evidence["runtime_data_claims"]["nonce"] == attester.nonce
        assert tee_key_of(attester.token) == attester.key.jwk

    def test_the_token_s_certificate_is_of_its_key(self, target: Target) -> None:
        jwk = jwt.get_unverified_header(Attester(target).ready().token)["jwk"]
        if "x5c" not in jwk:
            pytest.skip("this KBS has no certificate for its token key")
        leaf = load_der_x509_certificate(base64.b64decode(jwk["x5c"][0], validate=True))
        numbers = leaf.public_key().public_numbers()  # type: ignore[union-attr]
        assert (b64u(numbers.x.to_bytes(32)), b64u(numbers.y.to_bytes(32))) == (jwk["x"], jwk["y"])  # type: ignore[union-attr]
        assert leaf.not_valid_before_utc < datetime.datetime.now(datetime.UTC) < leaf.not_valid_after_utc

    def test_tokens_that_were_changed(self, target: Target) -> None:
        attester = Attester(target).ready()
        head, body, signature = attester.token.split(".")
        stranger = ec.generate_private_key(ec.SECP256R1())
        numbers = stranger.public_key().public_numbers()
        own_jwk = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "x": b64u(numbers.x.to_bytes(32)),
            "y": b64u(numbers.y.to_bytes(32)),
        }
        claims = payload_of(attester.token)
        for token in (
            f"{head}.{body}.",
            f"{head}.{body}.{b64u(bytes(64))}",
            f"{head}.{b64u(json.dumps({**claims, 'exp': claims['exp'] + 9999}).encode())}.{signature}",
            f"{b64u(json.dumps({'alg': 'none'}).encode())}.{body}.",
            jwt.encode(claims, stranger, algorithm="ES256", headers={"jwk": own_jwk}),
            jwt.encode(claims, stranger, algorithm="ES256"),
            "x",
        ):
            headers = {"Authorization": f"Bearer {token}"}
            answer = target.request("GET", PREFIX + RESOURCE, None, headers)
            assert answer.status == 401, token
            assert is_problem(answer, "TokenNotFound", "TokenVerifierError")

    # --- 1.6 administrators

    def test_admin_tokens(self, target: Target) -> None:
        past, future = int(time.time()) - 120, int(time.time()) + 3600
        for token, status in (
            (None, 401),
            ("", 401),
            ("x", 401),
            (target.stranger_token(), 401),
            (target.admin_token(exp=past), 401),
            (target.admin_token(exp=None), 401),
            (target.admin_token(role="nobody"), target.statuses["forbidden"]),
            (target.admin_token(role=["admin"]), target.statuses["forbidden"]),
            (target.admin_token(exp=future), 200),
        ):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            for method, path, body in (("POST", RESOURCE, VALUE), ("GET", "/resource-policy", None)):
                answer = target.request(method, PREFIX + path, body, headers)
                assert answer.status == status, token
                if status != 200:
                    assert is_problem(answer, "AdminAuthAccess", "TokenNotFound")

    def test_an_attester_s_token_is_no_admin_s(self, target: Target) -> None:
        attester = Attester(target).ready()
        headers = {"Authorization": f"Bearer {attester.token}", "Cookie": f"{COOKIE}={attester.cookie}"}
        assert target.request("POST", PREFIX + RESOURCE, b"x", headers).status == 401
        headers = {"Authorization": f"Bearer {target.admin_token()}"}
        assert target.request("GET", PREFIX + RESOURCE, None, headers).status == 401


def payload_of(token: str) -> Any:
    return json.loads(un_b64u(token.split(".")[1]))


def tee_key_of(token: str) -> Any:
    return copy.deepcopy(payload_of(token)["submods"]["cpu0"][EVIDENCE]["runtime_data_claims"]["tee-pubkey"])


def worst_tier(vector: Mapping[str, int]) -> str:
    """AR4SI section 2.3.2: 0 and ±1 say nothing, to 31 affirming, to 95 warning, beyond contraindicated."""
    tiers = ("none", "affirming", "warning", "contraindicated")
    ranks = [0 if -1 <= value <= 1 else 1 if -32 <= value < 32 else 2 if -96 <= value < 96 else 3 for value in vector.values()]
    return tiers[max(ranks, default=0)]
