"""A thousand wrong requests of many kinds to a real KBS (KBS-014): each is refused with its status and code, none is a bug
or ends the service for others, and no secret shows in an answer, a log, a metric, a decision or the audit log.

What is drawn is drawn from a seed: ENCLAVE_CC_SEED repeats a run, ENCLAVE_CC_WRONG_REQUESTS asks for more.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import importlib.util
import json
import os
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest

from enclave_cc.crypto import self_signed
from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.simulator.platform import Condition
from enclave_cc.simulator.platform import Platform as SimulatedMachine
from enclave_cc.wire.rcar import binding, messages
from enclave_cc.wire.rcar.initdata import InitData

_SPEC = importlib.util.spec_from_file_location("kbs_site", Path(__file__).resolve().parents[1] / "integration/kbs/conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
kbs_site: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["kbs_site"] = kbs_site
_SPEC.loader.exec_module(kbs_site)

REQUESTS = int(os.environ.get("ENCLAVE_CC_WRONG_REQUESTS", "1000"))
SEED = int(os.environ.get("ENCLAVE_CC_SEED", "20260401"))
CANARY = b"CANARY-" + hashlib.sha256(b"resource").hexdigest().encode()
SECRET_CLAIM = "CANARY-claim-" + hashlib.sha256(b"claim").hexdigest()
PREFIX = "/kbs/v0"
GOOD = f"{PREFIX}/resource/default/key/canary"
TEXT_JSON = {"Content-Type": "application/json"}
DEADLINE = 1  # of the KBS for slow clients, in seconds

Outcome = tuple[int, str | None]  # status, code


@dataclass
class Reply:
    status: int
    headers: str
    body: bytes

    @property
    def outcome(self) -> Outcome:
        try:
            return self.status, json.loads(self.body).get("code")
        except (ValueError, AttributeError):
            return self.status, None


def b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(header: Any, claims: Any, secret: bytes | None) -> str:
    """A JWS with HMAC, or with no signature."""
    parts = [b64u(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, claims)]
    mac = b"" if secret is None else hmac.new(secret, ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, b64u(mac)])


@dataclass
class Site:
    """A KBS, machines that are wrong in one way each, and everything secret that was met."""

    kbs: Any
    machines: dict[str, SimulatedMachine]
    rng: random.Random
    secrets: list[bytes] = field(default_factory=list)
    shown: list[bytes] = field(default_factory=list)  # what wrong requests were answered
    _connection: http.client.HTTPSConnection | None = None

    def __post_init__(self) -> None:
        host, port = self.kbs.url.removeprefix("https://").split(":")
        self.address = (host, int(port))
        self.context = ssl.create_default_context(cadata=self.kbs.certificate)
        self.context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        self.admin_key = SigningKey.from_pem((self.kbs.directory / "admin.key").read_bytes())
        self.token_key = SigningKey.from_pem((self.kbs.directory / "token.key").read_bytes())
        for name in ("admin.key", "token.key", "tls.key", "store.key"):
            text = (self.kbs.directory / name).read_bytes()
            self.secrets += [line for line in text.splitlines() if len(line) > 30 and b"-----" not in line]
        self.secrets += [CANARY, base64.b64encode(CANARY)[:40], CANARY.hex().encode(), SECRET_CLAIM.encode()]

    # --- requests

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """On a connection that is kept, as clients do."""
        for attempt in (0, 1):
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(*self.address, context=self.context, timeout=20)
            try:
                self._connection.putrequest(method, path, skip_accept_encoding=True)
                for name, value in (headers or {}).items():
                    self._connection.putheader(name, value)
                if body is not None:
                    self._connection.putheader("Content-Length", str(len(body)))
                self._connection.endheaders(body)
                answer = self._connection.getresponse()
                return self._note(Reply(answer.status, str(answer.headers), answer.read()))
            except (OSError, http.client.HTTPException):
                self._connection.close()
                self._connection = None
                if attempt:
                    raise
        raise AssertionError

    def send(self, data: bytes, *, wait: float = 10, shut: bool = False) -> list[Reply]:
        """Bytes on a connection of their own, and all answers until the KBS closes it or nothing more comes."""
        with (
            socket.create_connection(self.address, 10) as plain,
            self.context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            tls.settimeout(wait)
            received = b""
            try:
                tls.sendall(data)
                if shut:
                    plain.shutdown(socket.SHUT_WR)
                while piece := tls.recv(65536):
                    received += piece
                    if _is_whole(received):
                        tls.settimeout(0.05)  # another one of a pipeline comes at once
            except (OSError, ssl.SSLError):
                pass
        return [self._note(reply) for reply in _parse(received)]

    def _note(self, reply: Reply) -> Reply:
        self.shown.append(reply.headers.encode("utf-8", "replace") + b"\n" + reply.body)
        return reply

    def one(self, data: bytes, **options: Any) -> Outcome:
        replies = self.send(data, **options)
        return replies[0].outcome if replies else (0, None)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    # --- parts of requests

    def admin(self, **claims: Any) -> dict[str, str]:
        full = {"iss": "enclave-cc", "aud": "KBS", "role": "admin", "exp": int(time.time()) + 60, "secret": SECRET_CLAIM, **claims}
        return self.bearer(self.admin_key.sign({name: value for name, value in full.items() if value is not None}))

    def bearer(self, token: str) -> dict[str, str]:
        self.secrets.append(token.rsplit(".", 1)[-1].encode() if len(token) > 60 else b"\0never")
        return {"Authorization": f"Bearer {token}"}

    def session(self) -> tuple[str, str]:
        """(nonce, cookie) of a new session."""
        answer = self.ask("POST", f"{PREFIX}/auth", messages.Request("sgx").encode(), TEXT_JSON)
        assert answer.status == 200, answer
        found = re.search(rf"{messages.COOKIE}=([^;\s]+)", answer.headers)
        assert found is not None
        self.shown.pop()  # the one answer that may show a cookie
        self.secrets.append(found[1].encode())
        return json.loads(answer.body)["nonce"], found[1]

    def attestation(
        self, nonce: str, *, key: TeeKey | None = None, machine: str = "good", additional: str = "", **identity: Any
    ) -> dict[str, Any]:
        key = key or TeeKey.generate()
        platform = kbs_site.EnclavePlatform(self.machines[machine], kbs_site.make_identity(**identity))
        quote = platform.quote(binding.pad(binding.compute_report_data(nonce, key.public, additional)))
        made = messages.Attestation(nonce, key.public, messages.encode_sgx_evidence(quote), additional)
        return json.loads(made.encode())  # type: ignore[no-any-return]

    def attest(self, body: Any, cookie: str) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", f"{PREFIX}/attest", data, {**TEXT_JSON, "Cookie": f"{messages.COOKIE}={cookie}"})

    def attested(self, **options: Any) -> tuple[str, str]:
        """(cookie, token) of an accepted session."""
        nonce, cookie = self.session()
        answer = self.attest(self.attestation(nonce, **options), cookie)
        assert answer.status == 200, answer
        self.shown.pop()
        token = json.loads(answer.body)["token"]
        self.secrets.append(token.rsplit(".", 1)[-1].encode())
        return cookie, token

    def get(self, path: str, cookie: str) -> Outcome:
        return self.ask("GET", path, None, {"Cookie": f"{messages.COOKIE}={cookie}"}).outcome

    def quoted(self, change: Callable[[bytes], bytes]) -> Outcome:
        """An attestation whose quote was changed."""
        nonce, cookie = self.session()
        body = self.attestation(nonce)
        quote = change(base64.b64decode(body["tee-evidence"]["primary_evidence"]["quote"]))
        body["tee-evidence"]["primary_evidence"]["quote"] = base64.b64encode(quote).decode()
        return self.attest(body, cookie).outcome

    def serves(self) -> None:
        """A whole good round."""
        cookie, _ = self.attested()
        answer = self.ask("GET", GOOD, None, {"Cookie": f"{messages.COOKIE}={cookie}"})
        assert answer.status == 200, answer
        self.shown.pop()


def _is_whole(data: bytes) -> bool:
    head, found, body = data.rpartition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)[^\r]*(?:\r\n(?!HTTP/)[^\r]+)*\Z", head)
    return bool(found) and length is not None and len(body) >= int(length[1])


def _parse(data: bytes) -> list[Reply]:
    replies = []
    while data.startswith(b"HTTP/1."):
        head, _, rest = data.partition(b"\r\n\r\n")
        length = int((re.search(rb"(?i)content-length: (\d+)", head) or [b"", b"0"])[1])
        status = int(head.split(b" ", 2)[1])
        if status != 100:
            replies.append(Reply(status, head.decode("latin-1"), rest[:length]))
        data = rest[length:] if status != 100 else rest
    return replies


# --- the kinds. Each is a function of the site: one wrong request, its outcome, and the outcomes it may have.

Kind = Callable[[Site], tuple[Outcome, "set[Outcome]"]]
KINDS: dict[str, Kind] = {}
SLOW: dict[str, Kind] = {}  # which take the KBS's deadline: a few of each, at once


def kind(*outcomes: Outcome, slow: bool = False) -> Callable[[Callable[[Site], Outcome]], Callable[[Site], Outcome]]:
    def register(function: Callable[[Site], Outcome]) -> Callable[[Site], Outcome]:
        (SLOW if slow else KINDS)[function.__name__] = lambda site: (function(site), set(outcomes))
        return function

    return register


MALFORMED, REFUSED = (400, "malformed"), (401, "quote-refused")
UNAUTHENTICATED, FORBIDDEN = (401, "unauthenticated"), (403, "forbidden")
NO_PATH, NO_EVIDENCE = (404, "not-found"), (401, "malformed")


def auth(site: Site, body: bytes) -> Outcome:
    return site.ask("POST", f"{PREFIX}/auth", body, TEXT_JSON).outcome


def request(**members: Any) -> bytes:
    return json.dumps({"version": "0.4.0", "tee": "sgx", "extra-params": "", **members}).encode()


# bodies of /auth


@kind(MALFORMED)
def auth_random_bytes(site: Site) -> Outcome:
    return auth(site, site.rng.randbytes(site.rng.randrange(0, 400)))


@kind(MALFORMED)
def auth_cut_json(site: Site) -> Outcome:
    body = request()
    return auth(site, body[: site.rng.randrange(len(body))])


@kind((401, "kbs-protocol"))
def auth_other_version(site: Site) -> Outcome:
    parts = [str(site.rng.randrange(10)) for _ in range(3)]
    version = ".".join(parts)
    return auth(site, request(version="0.4.1" if version == "0.4.0" else version))


@kind(REFUSED)
def auth_other_tee(site: Site) -> Outcome:
    return auth(site, request(tee=site.rng.choice(["tdx", "snp", "sample", "sampledevice", "se", "x", "sgx-"])))


@kind(MALFORMED)
def auth_sql_in_tee(site: Site) -> Outcome:
    return auth(site, request(tee=site.rng.choice(["sgx'; DROP TABLE session;--", "' OR 1=1 --", "sgx\0", "sgx\n", "SGX"])))


@kind(MALFORMED)
def auth_repeated_member(site: Site) -> Outcome:
    name = site.rng.choice(["version", "tee", "extra-params"])
    return auth(site, request()[:-1] + f', "{name}": "sgx"}}'.encode())


@kind(MALFORMED)
def auth_not_a_number(site: Site) -> Outcome:
    return auth(site, request()[:-1] + b', "x": ' + site.rng.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999"]) + b"}")


@kind(MALFORMED)
def auth_huge_number(site: Site) -> Outcome:
    return auth(site, request()[:-1] + b', "x": ' + b"9" * site.rng.randrange(4301, 50_000) + b"}")


@kind(MALFORMED)
def auth_deep_json(site: Site) -> Outcome:
    depth = site.rng.choice([33, 100, 5_000, 200_000])
    return auth(site, b'{"version":"0.4.0","tee":"sgx","extra-params":' + b"[" * depth + b"]" * depth + b"}")


@kind(MALFORMED)
def auth_half_a_surrogate_pair(site: Site) -> Outcome:
    return auth(site, request()[:-1] + b', "x": "\\ud8' + b"%02x" % site.rng.randrange(256) + b'"}')


@kind(MALFORMED)
def auth_other_encoding(site: Site) -> Outcome:
    return auth(site, request().decode().encode(site.rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])))


@kind(MALFORMED)
def auth_lacks_a_member(site: Site) -> Outcome:
    value = json.loads(request())
    del value[site.rng.choice(list(value))]
    return auth(site, json.dumps(value).encode())


@kind(MALFORMED)
def auth_no_object(site: Site) -> Outcome:
    return auth(site, site.rng.choice([b"[]", b"null", b"0", b'"x"', b"true", b"", b" "]))


# cookies and challenges


@kind(UNAUTHENTICATED)
def attest_without_cookie(site: Site) -> Outcome:
    return site.ask("POST", f"{PREFIX}/attest", b"{}", TEXT_JSON).outcome


@kind(UNAUTHENTICATED)
def attest_made_up_cookie(site: Site) -> Outcome:
    text = site.rng.choice(
        [site.rng.randbytes(16).hex(), b64u(site.rng.randbytes(48)), "0", "../../kbs.db", "' OR ''='", "a" * 4000]
    )
    return site.attest(b"{}", text).outcome


@kind(UNAUTHENTICATED)
def attest_changed_cookie(site: Site) -> Outcome:
    nonce, cookie = site.session()
    at = site.rng.randrange(len(cookie))
    changed = cookie[:at] + site.rng.choice([c for c in "abcdef0123456789" if c != cookie[at].lower()]) + cookie[at + 1 :]
    return site.attest(site.attestation(nonce), changed).outcome


@kind(UNAUTHENTICATED)
def attest_two_cookies(site: Site) -> Outcome:
    nonce, cookie = site.session()
    name = messages.COOKIE
    headers = {**TEXT_JSON, "Cookie": f"{name}={cookie}; {name}={'0' * 32}"}
    return site.ask("POST", f"{PREFIX}/attest", json.dumps(site.attestation(nonce)).encode(), headers).outcome


@kind(REFUSED)
def attest_other_nonce(site: Site) -> Outcome:
    _, cookie = site.session()
    other = base64.b64encode(site.rng.randbytes(32)).decode()
    return site.attest(site.attestation(other), cookie).outcome


@kind(REFUSED)
def attest_nonce_of_another_session(site: Site) -> Outcome:
    other, _ = site.session()
    _, cookie = site.session()
    return site.attest(site.attestation(other), cookie).outcome


@kind(UNAUTHENTICATED)
def attest_replayed_session(site: Site) -> Outcome:
    nonce, cookie = site.session()
    body = site.attestation(nonce)
    bad = json.loads(json.dumps(body))
    bad["runtime-data"]["tee-pubkey"] = dict(TeeKey.generate().public.members)
    assert site.attest(bad, cookie).outcome == REFUSED
    return site.attest(body, cookie).outcome


# evidence

_OTHER_CODES = ("untrusted-root", "debug-enclave")


@kind(REFUSED)
def attest_other_tee_key(site: Site) -> Outcome:
    nonce, cookie = site.session()
    body = site.attestation(nonce)
    body["runtime-data"]["tee-pubkey"] = dict(TeeKey.generate(site.rng.choice(["P-256", "P-521"])).public.members)
    return site.attest(body, cookie).outcome


@kind(NO_EVIDENCE)
def attest_cut_quote(site: Site) -> Outcome:
    return site.quoted(lambda quote: quote[: site.rng.randrange(len(quote) - 1)])


@kind(NO_EVIDENCE)
def attest_quote_with_a_tail(site: Site) -> Outcome:
    return site.quoted(lambda quote: quote + site.rng.randbytes(site.rng.randrange(1, 100)))


@kind(NO_EVIDENCE)
def attest_random_quote(site: Site) -> Outcome:
    return site.quoted(lambda quote: site.rng.randbytes(site.rng.choice([0, 1, 432, len(quote), 60_000])))


@kind(
    *[
        (401, code)
        for code in ("quote-refused", "malformed", "untrusted-root", "debug-enclave", "collateral-refused", "tcb-refused")
    ]
)
def attest_changed_quote(site: Site) -> Outcome:
    def flip(quote: bytes) -> bytes:
        changed = bytearray(quote)
        changed[site.rng.randrange(len(quote) - 1)] ^= 1 << site.rng.randrange(8)
        return bytes(changed)

    return site.quoted(flip)


@kind(NO_EVIDENCE)
def attest_quote_of_a_huge_length(site: Site) -> Outcome:
    return site.quoted(lambda quote: quote[:432] + struct.pack("<I", site.rng.choice([0xFFFFFFFF, 0x7FFFFFFF, 0])) + quote[436:])


@kind(NO_EVIDENCE)
def attest_evidence_of_another_kind(site: Site) -> Outcome:
    nonce, cookie = site.session()
    body = site.attestation(nonce)
    junk = [None, 5, [], {}, "x", {"quote": 5}, {"quote": "!"}, {"quote": ""}, {"quote": None}, {"svn": "1", "report_data": ""}]
    body["tee-evidence"]["primary_evidence"] = site.rng.choice(junk)
    return site.attest(body, cookie).outcome


@kind((401, "untrusted-root"))
def attest_unknown_root(site: Site) -> Outcome:
    nonce, cookie = site.session()
    return site.attest(site.attestation(nonce, machine="stranger"), cookie).outcome


@kind((401, "debug-enclave"))
def attest_debug_enclave(site: Site) -> Outcome:
    nonce, cookie = site.session()
    return site.attest(site.attestation(nonce, debug=True), cookie).outcome


@kind((401, "collateral-refused"))
def attest_expired_collateral(site: Site) -> Outcome:
    nonce, cookie = site.session()
    return site.attest(site.attestation(nonce, machine="expired"), cookie).outcome


@kind(REFUSED)
def attest_revoked_platform(site: Site) -> Outcome:
    nonce, cookie = site.session()
    return site.attest(site.attestation(nonce, machine="revoked"), cookie).outcome


@kind((401, "tcb-refused"))
def attest_revoked_tcb_level(site: Site) -> Outcome:
    nonce, cookie = site.session()
    return site.attest(site.attestation(nonce, machine="recovered"), cookie).outcome


@kind((403, "tcb-refused"))
def get_from_an_outdated_platform(site: Site) -> Outcome:
    cookie, _ = site.attested(machine="outdated")
    return site.get(GOOD, cookie)


@kind((403, "measurement-unknown"))
def get_from_an_unknown_enclave(site: Site) -> Outcome:
    cookie, _ = site.attested(mr_enclave=site.rng.randbytes(32))
    return site.get(GOOD, cookie)


@kind(REFUSED)
def attest_init_data_that_is_not_measured(site: Site) -> Outcome:
    nonce, cookie = site.session()
    text = f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"x" = "{site.rng.random()}"\n'
    return site.attest(site.attestation(nonce) | {"init-data": {"format": "toml", "body": text}}, cookie).outcome


@kind(REFUSED)
def attest_init_data_that_was_left_out(site: Site) -> Outcome:
    nonce, cookie = site.session()
    return site.attest(site.attestation(nonce, config_id=site.rng.randbytes(64)), cookie).outcome


@kind(REFUSED)
def attest_init_data_of_a_relay(site: Site) -> Outcome:
    key, now = SigningKey.generate("ES256").to_pem(), int(time.time())
    pem = self_signed.make_certificate(key, common_name="relay", hosts=(), not_before=now - 60, not_after=now + 60).decode()
    inner = f"[token_configs.kbs]\ncert = {json.dumps(pem)}\n"
    text = f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = {json.dumps(inner)}\n'
    nonce, cookie = site.session()
    body = site.attestation(nonce, config_id=binding.pad(InitData.parse(text).digest()))
    return site.attest(body | {"init-data": {"format": "toml", "body": text}}, cookie).outcome


@kind(NO_EVIDENCE)
def attest_init_data_that_is_no_toml(site: Site) -> Outcome:
    nonce, cookie = site.session()
    junk = [
        "",
        "=",
        "[",
        'version = "0.1.0"',
        "a" * 300_000,
        ".".join(["a"] * 5000) + "=1",
        'version="9"\nalgorithm="sha256"\n[data]\n',
    ]
    body = site.attestation(nonce) | {"init-data": {"format": "toml", "body": site.rng.choice(junk)}}
    return site.attest(body, cookie).outcome


@kind(MALFORMED)
def attest_init_data_of_another_format(site: Site) -> Outcome:
    nonce, cookie = site.session()
    form = site.rng.choice(["json", "yaml", "", None, 5, {}, "TOML"])
    return site.attest(site.attestation(nonce) | {"init-data": {"format": form, "body": ""}}, cookie).outcome


@kind(REFUSED, NO_EVIDENCE)
def attest_devices_that_nobody_knows(site: Site) -> Outcome:
    nonce, cookie = site.session()
    additional = site.rng.choice(['{"nvidia":{}}', "{", "[]", "5", '{"a":1,"a":2}', '{"sample":{}}'])
    return site.attest(site.attestation(nonce, additional=additional), cookie).outcome


@kind(MALFORMED)
def attest_keys_that_are_none(site: Site) -> Outcome:
    nonce, cookie = site.session()
    body, good = site.attestation(nonce), dict(TeeKey.generate().public.members)
    junk: list[Any] = [
        None,
        5,
        [],
        {},
        {**good, "x": good["y"]},
        {**good, "crv": "P-384"},
        {**good, "alg": "none"},
        {**good, "x": "A" * 99999},
    ]
    junk += [
        {"kty": "RSA", "alg": "RSA1_5", "n": b64u(b"\xff" * 256), "e": "AQAB"},
        {"kty": "RSA", "alg": "RSA-OAEP-256", "n": "AQAB", "e": "AQAB"},
    ]
    body["runtime-data"]["tee-pubkey"] = site.rng.choice(junk)
    return site.attest(body, cookie).outcome


@kind(MALFORMED)
def attest_body_without_parts(site: Site) -> Outcome:
    nonce, cookie = site.session()
    body = site.attestation(nonce)
    outer = site.rng.choice(["runtime-data", "tee-evidence"])
    if site.rng.random() < 0.5:
        del body[outer]
    else:
        body[outer] = site.rng.choice([None, 5, [], "x", {}])
    return site.attest(body, cookie).outcome


# resources


@kind(UNAUTHENTICATED)
def get_without_anything(site: Site) -> Outcome:
    return site.ask("GET", GOOD).outcome


@kind(UNAUTHENTICATED)
def get_before_attesting(site: Site) -> Outcome:
    return site.get(GOOD, site.session()[1])


@kind((404, "key-missing"))
def get_what_is_not_there(site: Site) -> Outcome:
    cookie, _ = site.attested()
    return site.get(f"{PREFIX}/resource/default/key/{site.rng.randbytes(8).hex()}", cookie)


_TRAVERSALS = (
    "../../etc/passwd", "default/key/../canary", "default/./canary", "..%2f..%2fx/y/z", "default/key/%2e%2e",
    "default/key/.canary", "default//canary", "/default/key/canary", "default/key/canary/", "default/key/canary/..",
    "....//....//x", "default\\key\\canary", "default/key/canary%00", "default/key/%0acanary", "%64efault/key/canary",
    "default/key/canary;x", "default/key/c%C3%A4", "a/b",
)  # fmt: skip


@kind(NO_PATH)
def get_traversing(site: Site) -> Outcome:
    cookie, _ = site.attested()
    return site.get(f"{PREFIX}/resource/{site.rng.choice(_TRAVERSALS)}", cookie)


@kind(NO_PATH)
def get_sql_in_names(site: Site) -> Outcome:
    cookie, _ = site.attested()
    name = site.rng.choice(
        ["'--", "x'%20OR%20'1'='1", "x;DROP%20TABLE%20resource", "%25", "x%22", "*", "x'||'", "$(id)", "`id`", "{{7*7}}"]
    )
    return site.get(f"{PREFIX}/resource/default/key/{name}", cookie)


@kind((404, "not-found"), MALFORMED)
def get_very_long_path(site: Site) -> Outcome:
    path = f"{PREFIX}/resource/a/b/{'c' * site.rng.randrange(300, 20_000)}".encode()
    return site.one(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def get_by(site: Site, token: str) -> Outcome:
    return site.ask("GET", GOOD, None, site.bearer(token)).outcome


@kind(UNAUTHENTICATED)
def get_token_without_signature(site: Site) -> Outcome:
    _, token = site.attested()
    _, body, _ = token.split(".")
    head = {"alg": site.rng.choice(["none", "None", "NONE", ""]), "kid": site.token_key.public.kid}
    return get_by(site, f"{b64u(json.dumps(head).encode())}.{body}.")


@kind(UNAUTHENTICATED)
def get_token_by_hmac_of_the_public_key(site: Site) -> Outcome:
    _, token = site.attested()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    secret = site.rng.choice([site.token_key.public.to_pem(), json.dumps(site.token_key.public.to_jwk()).encode(), b""])
    return get_by(site, by_hand({"alg": site.rng.choice(["HS256", "ES256"]), "kid": site.token_key.public.kid}, claims, secret))


@kind(UNAUTHENTICATED)
def get_token_of_a_stranger(site: Site) -> Outcome:
    _, token = site.attested()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    stranger = SigningKey.generate("ES256")
    head: list[dict[str, Any]] = [{}, {"jwk": stranger.public.to_jwk()}, {"kid": site.token_key.public.kid}, {"kid": ["x"]}]
    head += [{"jwk": {**stranger.public.to_jwk(), "x5c": jwt.get_unverified_header(token)["jwk"]["x5c"]}}]
    return get_by(site, stranger.sign(claims, site.rng.choice(head)))


@kind(UNAUTHENTICATED)
def get_changed_token(site: Site) -> Outcome:
    _, token = site.attested()
    at = site.rng.randrange(len(token))
    other = site.rng.choice("abcXYZ019_-")
    return get_by(site, token[:at] + (other if other != token[at] else "Q") + token[at + 1 :])


@kind(UNAUTHENTICATED)
def get_token_that_is_signed_and_wrong(site: Site) -> Outcome:
    """By the KBS's own key: what its checks of claims must catch."""
    _, token = site.attested()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    kid = {"kid": site.token_key.public.kid}
    now = int(time.time())
    wrong: list[tuple[Any, dict[str, Any]]] = [
        ({**claims, "exp": now - 120}, kid),
        ({**claims, "exp": "never"}, kid),
        ({name: value for name, value in claims.items() if name != "exp"}, kid),
        ({**claims, "nbf": now + 600}, kid),
        ({**claims, "submods": []}, kid),
        ({**claims, "submods": {}}, kid),
        (claims, {**kid, "crit": ["exp"]}),
        (claims, {"kid": "another"}),
    ]
    return get_by(site, site.token_key.sign(*site.rng.choice(wrong)))


@kind(UNAUTHENTICATED)
def get_token_with_a_repeated_claim(site: Site) -> Outcome:
    payload = b'{"exp":1,"exp":' + str(int(time.time()) + 60).encode() + b',"submods":{}}'
    head = {"kid": site.token_key.public.kid}
    return get_by(site, jwt.api_jws.encode(payload, site.token_key.to_pem().decode(), algorithm="ES256", headers=head))


@kind(UNAUTHENTICATED)
def get_no_token_at_all(site: Site) -> Outcome:
    junk = ["", "x", "a.b.c", "....", "." * 500, "A" * 7000, "e30.e30.", "\xff\xfe", "null", "Basic eDp5"]
    return site.ask("GET", GOOD, None, {"Authorization": f"Bearer {site.rng.choice(junk)}"}).outcome


@kind(UNAUTHENTICATED)
def get_by_admin_token(site: Site) -> Outcome:
    return site.ask("GET", GOOD, None, site.admin()).outcome


# administrators

_ADMIN_CALLS = (
    ("GET", "/resource-policy"), ("POST", "/resource-policy"), ("POST", "/attestation-policy"), ("POST", "/reference-value"),
    ("GET", "/reference-value/x"), ("POST", "/resource/team-b/key/one"), ("DELETE", "/resource/team-b/key/one"),
    ("GET", "/admin/resources/default/key/canary"), ("GET", "/admin/decisions"), ("GET", "/admin/policies"),
    ("GET", "/admin/audit"), ("GET", "/admin/reference-values"), ("GET", "/admin/nothing/at/all"),
)  # fmt: skip


def administer(site: Site, headers: dict[str, str]) -> Outcome:
    method, path = site.rng.choice(_ADMIN_CALLS)
    return site.ask(method, PREFIX + path, b"{}" if method == "POST" else None, headers).outcome


@kind(UNAUTHENTICATED)
def admin_without_token(site: Site) -> Outcome:
    return administer(
        site, site.rng.choice([{}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"Authorization": ""}])
    )


@kind(UNAUTHENTICATED)
def admin_token_without_signature(site: Site) -> Outcome:
    claims = {"role": "admin", "exp": int(time.time()) + 60, "iss": "enclave-cc", "aud": "KBS", "secret": SECRET_CLAIM}
    return administer(site, site.bearer(by_hand({"alg": site.rng.choice(["none", "nOnE", "null"])}, claims, None)))


@kind(UNAUTHENTICATED)
def admin_token_by_hmac_of_the_public_key(site: Site) -> Outcome:
    claims = {"role": "admin", "exp": int(time.time()) + 60, "iss": "enclave-cc", "aud": "KBS"}
    raw = base64.urlsafe_b64decode(site.admin_key.public.to_jwk()["x"] + "=")
    secret = site.rng.choice([site.admin_key.public.to_pem(), raw, site.admin_key.public.to_pem().strip()])
    return administer(site, site.bearer(by_hand({"alg": site.rng.choice(["HS256", "EdDSA", "HS512"])}, claims, secret)))


@kind(UNAUTHENTICATED)
def admin_token_of_a_stranger(site: Site) -> Outcome:
    stranger = SigningKey.generate(site.rng.choice(["EdDSA", "ES256"]))
    claims = {"role": "admin", "exp": int(time.time()) + 60, "iss": "enclave-cc", "aud": "KBS", "secret": SECRET_CLAIM}
    head = site.rng.choice(
        [{}, {"jwk": stranger.public.to_jwk()}, {"kid": site.admin_key.public.kid}, {"jku": "https://127.0.0.1:1/"}]
    )
    return administer(site, site.bearer(stranger.sign(claims, head)))


@kind(UNAUTHENTICATED)
def admin_token_out_of_time(site: Site) -> Outcome:
    now = int(time.time())
    wrong = [{"exp": now - 1}, {"exp": None}, {"exp": True}, {"exp": "x"}, {"exp": 10**400}, {"nbf": now + 600}, {"nbf": "x"}]
    return administer(site, site.admin(**site.rng.choice(wrong)))


@kind(UNAUTHENTICATED)
def admin_token_for_somebody_else(site: Site) -> Outcome:
    wrong: list[dict[str, Any]] = [
        {"aud": "other"},
        {"aud": None},
        {"aud": ["x"]},
        {"iss": "other"},
        {"iss": None},
        {"aud": {"KBS": 1}},
    ]
    return administer(site, site.admin(**site.rng.choice(wrong)))


@kind(UNAUTHENTICATED)
def admin_token_with_critical_header(site: Site) -> Outcome:
    claims = {"role": "admin", "exp": int(time.time()) + 60, "iss": "enclave-cc", "aud": "KBS"}
    return administer(
        site, site.bearer(site.admin_key.sign(claims, {"crit": site.rng.choice([["exp"], [], ["b64"]]), "b64": False}))
    )


@kind(UNAUTHENTICATED)
def admin_token_with_a_repeated_claim(site: Site) -> Outcome:
    payload = f'{{"role":"team-a","role":"admin","iss":"enclave-cc","aud":"KBS","exp":{int(time.time()) + 60}}}'.encode()
    return administer(site, site.bearer(jwt.api_jws.encode(payload, site.admin_key.to_pem().decode(), algorithm="EdDSA")))


@kind(FORBIDDEN)
def admin_token_of_another_scope(site: Site) -> Outcome:
    return administer(site, site.admin(role="team-a"))


@kind(FORBIDDEN)
def admin_token_of_no_role(site: Site) -> Outcome:
    roles: list[Any] = [None, "nobody", "", ["admin"], {"admin": 1}, "Admin", "admin\0"]
    return administer(site, site.admin(role=site.rng.choice(roles)))


@kind(UNAUTHENTICATED)
def admin_by_an_attester_s_token(site: Site) -> Outcome:
    return administer(site, site.bearer(site.attested()[1]))


@kind(MALFORMED, (400, "policy-invalid"), (400, "usage"), NO_PATH)
def admin_wrong_policies(site: Site) -> Outcome:
    def encode(text: str) -> str:
        return b64u(text.encode())

    path, body = site.rng.choice(
        [
            ("/resource-policy", b"{}"),
            ("/resource-policy", b'{"policy":"!"}'),
            ("/resource-policy", json.dumps({"policy": encode("package policy\nallow if {")}).encode()),
            ("/resource-policy", json.dumps({"policy": encode("package other\nx := 1")}).encode()),
            ("/resource-policy", json.dumps({"policy": b64u(b"\xff\xfe")}).encode()),
            ("/attestation-policy", json.dumps({"policy_id": "../x", "policy": encode("package policy")}).encode()),
            ("/attestation-policy", json.dumps({"policy_id": "x'; DROP TABLE policy", "policy": "eA"}).encode()),
            ("/attestation-policy", b'{"policy_id":5,"policy":"eA"}'),
            ("/admin/policies/resource-policy/../../x", json.dumps({"policy": encode("package policy\nallow := true")}).encode()),
            ("/admin/policy-activations", b'{"activate":{"absent":1}}'),
            ("/admin/policy-activations", b'{"activate":{"resource-policy":99999}}'),
            ("/admin/policy-activations", b'{"roll_back":5}'),
        ]
    )
    return site.ask("POST", PREFIX + path, body, site.admin()).outcome


@kind(MALFORMED, (400, "usage"), NO_PATH)
def admin_wrong_reference_values(site: Site) -> Outcome:
    method, path, body = site.rng.choice(
        [
            ("POST", "/reference-value", b"{}"),
            ("POST", "/reference-value", b'{"version":"0.1.0","type":"sample","payload":"!"}'),
            ("POST", "/reference-value", b'{"version":"0.1.0","type":"nothing","payload":"e30"}'),
            ("POST", "/admin/reference-values", b'{"values":[1]}'),
            ("POST", "/admin/reference-values", b'{"values":{"a":1}}'),
            ("POST", "/admin/reference-values", b'{"values":[{"name":"x","value":NaN}]}'),
            ("DELETE", "/admin/reference-values", None),
            ("DELETE", "/admin/reference-values?name=x'%20OR%201=1--", None),
            ("DELETE", "/admin/reference-values?name=x&value={", None),
            ("DELETE", '/admin/reference-values?name=x&value="%5Cud800"', None),
            ("DELETE", "/admin/reference-values?name=%ff%fe", None),
            ("POST", "/admin/reference-values/retire", b"{}"),
            ("POST", "/admin/reference-signers", b'{"name":"x","pem":"nonsense"}'),
            ("DELETE", "/admin/reference-signers/..%2f", None),
        ]
    )
    return site.ask(method, PREFIX + path, body, site.admin()).outcome


@kind(MALFORMED, (400, "usage"), NO_PATH)
def admin_wrong_queries(site: Site) -> Outcome:
    path = site.rng.choice(
        [
            "/admin/decisions?limit=0",
            "/admin/decisions?limit=-1",
            "/admin/decisions?limit=" + "0" * 5000 + "1",
            "/admin/decisions?limit=%D9%A1",
            "/admin/decisions?outcome='OR'1'='1",
            "/admin/decisions/%00",
            "/admin/decisions/..%2f..",
            "/admin/resources?limit=1e9",
            "/admin/resources?tags={",
            '/admin/resources?tags={"a":5}',
            '/admin/resources?tags={"a":"%5Cud800"}',
            "/admin/audit/log?size=99999999999&begin=0",
            "/admin/audit/log?size=x&begin=0",
            "/admin/audit/log",
            "/admin/audit/entries/-1?size=1",
            "/admin/audit/consistency?old=2&new=1",
            "/admin/audit/resources/..%2f?size=1&begin=0",
            "/admin/policies/default_cpu?version=0",
            "/admin/policies/%ff",
            "/admin/policies/default_cpu?version=" + "1" * 4400,
            "/admin/recordings?limit=x",
            "/admin/resources/default/key/canary?version=x",
            "/admin/resources/default/key/canary?version=999999999",
            "/admin/resources/%ff/%fe/x",
        ]
    )
    return site.ask("GET", PREFIX + path, None, site.admin()).outcome


@kind((413, "too-large"))
def admin_huge_body(site: Site) -> Outcome:
    size = site.rng.choice([2 * 1024 * 1024 + 1, 3_000_000, 10**15])
    head = "".join(f"{name}: {value}\r\n" for name, value in site.admin().items())
    start = f"POST {PREFIX}/resource/a/b/c HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {size}\r\n\r\n".encode()
    return site.one(start + bytes(1000))


@kind((413, "too-large"))
def attest_endless_chunks(site: Site) -> Outcome:
    start = f"POST {PREFIX}/attest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return site.one(start + (b"80000\r\n" + b" " * 0x80000 + b"\r\n") * 5)


@kind(UNAUTHENTICATED)
def admin_huge_body_of_nobody(site: Site) -> Outcome:
    """Refused before any of it was asked for."""
    start = f"POST {PREFIX}/resource/a/b/c HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n".encode()
    return site.one(start)


# HTTP itself


@kind((405, "not-found"))
def http_other_methods(site: Site) -> Outcome:
    path = site.rng.choice([f"{PREFIX}/auth", f"{PREFIX}/attest", GOOD, "/healthz", "/metrics"])
    return site.ask(site.rng.choice(["PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]), path).outcome


@kind(NO_PATH)
def http_other_paths(site: Site) -> Outcome:
    path = site.rng.choice(
        ["/", "//", "/kbs", "/kbs/v1/auth", "/KBS/V0/AUTH", "/admin", "/.git/config", "/kbs/v0/nebula-ca/x", "/kbs/v0", "/%00"]
    )
    return site.ask("GET", path).outcome


@kind(MALFORMED, (0, None))
def http_no_http(site: Site) -> Outcome:
    junk = [b"\0" * 50, b"GET\r\n\r\n", b"\x16\x03\x01" + site.rng.randbytes(60) + b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    junk += [b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"G\xffT / HTTP/1.1\r\nHost: x\r\n\r\n"]
    return site.one(site.rng.choice(junk) + b"\r\n\r\n", wait=3)


@kind(MALFORMED)
def http_smuggled_lengths(site: Site) -> Outcome:
    framing = site.rng.choice(
        [
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: -1",
            b"Content-Length: +5",
            b"Content-Length: 5, 5",
            b"Content-Length: 0x5",
            b"Content-Length: 99999999999999999999999",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: xchunked",
            b"Content-Length: 5\r\n Folded: x",
        ]
    )
    return site.one(b"POST " + PREFIX.encode() + b"/auth HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n0\r\n\r\n", wait=3)


@kind(MALFORMED)
def http_broken_chunks(site: Site) -> Outcome:
    body = site.rng.choice(
        [
            b"zz\r\n{}\r\n0\r\n\r\n",
            b"-1\r\n{}\r\n",
            b"2\r\n{}xx0\r\n\r\n",
            b"ffffffffffffffffff\r\n{}",
            b"2;" + b"x" * 20000 + b"\r\n{}\r\n0\r\n\r\n",
        ]
    )
    return site.one(b"POST " + PREFIX.encode() + b"/auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body, wait=3)


@kind(MALFORMED)
def http_header_injection(site: Site) -> Outcome:
    bad = site.rng.choice([b"X: a\rb", b"X: a\0b", b"X\n: a", b"X : a", b": a", b"X(: a", b"Host: a\r\n: b"])
    return site.one(b"GET /healthz HTTP/1.1\r\n" + bad + b"\r\n\r\n", wait=3)


@kind(MALFORMED, (0, None))  # or the connection is reset while it comes
def http_endless_header(site: Site) -> Outcome:
    head = site.rng.choice(
        [b"X: " + b"a" * 100_000, b"\r\n".join(b"X%d: a" % n for n in range(40_000)), b"Cookie: " + b"a=b; " * 20_000]
    )
    return site.one(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")


@kind(UNAUTHENTICATED)
def http_1_0(site: Site) -> Outcome:
    keep = site.rng.choice([b"", b"Connection: keep-alive\r\n"])
    return site.one(b"GET " + GOOD.encode() + b" HTTP/1.0\r\n" + keep + b"\r\n", wait=3)


@kind(UNAUTHENTICATED)
def http_pipelined(site: Site) -> Outcome:
    """Each gets its answer, in order."""
    replies = site.send(
        f"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\nPUT {GOOD} HTTP/1.1\r\nHost: x\r\n\r\n"
        f"GET {GOOD} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert [reply.status for reply in replies] == [404, 200, 405, 401]
    return replies[-1].outcome


@kind((0, None), MALFORMED, (408, "deadline"))
def http_half_a_request(site: Site) -> Outcome:
    """The client goes away within its body, or within its head."""
    whole = f"POST {PREFIX}/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode()
    return site.one(whole[: site.rng.randrange(1, len(whole))], wait=0.02)


@kind((0, None), MALFORMED, (408, "deadline"))
def http_half_closed(site: Site) -> Outcome:
    data = f"POST {PREFIX}/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode()
    return site.one(data, shut=True, wait=3)


@kind((0, None))
def http_without_tls(site: Site) -> Outcome:
    with socket.create_connection(site.address, 10) as plain:
        plain.settimeout(5)
        try:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            received = plain.recv(4096)
        except OSError:
            received = b""
    assert not received.startswith(b"HTTP/1.1 200")
    return (0, None)


@kind(MALFORMED)
def http_compressed_bomb(site: Site) -> Outcome:
    bomb = zlib.compress(b"{" + b" " * 20_000_000, 9)
    coding = site.rng.choice(["deflate", "gzip", "br", "zstd", "x"])
    return site.ask("POST", f"{PREFIX}/auth", bomb, {**TEXT_JSON, "Content-Encoding": coding}).outcome


@kind((405, "not-found"))
def http_upgrade(site: Site) -> Outcome:
    headers = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    return site.one(f"GET {PREFIX}/auth HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode(), wait=3)


@kind(UNAUTHENTICATED, NO_PATH, MALFORMED)
def http_absolute_target(site: Site) -> Outcome:
    target = site.rng.choice([f"https://other.example{GOOD}", f"http://x@y:1{GOOD}", "*", "other.example:443"])
    method = "CONNECT" if target.endswith(":443") else "OPTIONS" if target == "*" else "GET"
    return site.one(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), wait=3)


@kind((408, "deadline"), slow=True)
def slow_body(site: Site) -> Outcome:
    return site.one(f"POST {PREFIX}/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode())


@kind((408, "deadline"), slow=True)
def slow_chunks(site: Site) -> Outcome:
    return site.one(f"POST {PREFIX}/attest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())


@kind((0, None), slow=True)
def slow_head(site: Site) -> Outcome:
    return site.one(b"GET /healthz HTTP/1.1\r\nHost:")


@kind((0, None), slow=True)
def silent(site: Site) -> Outcome:
    return site.one(b"")


# --- the test


def _start(base: Path) -> Iterator[Site]:
    names = ("good", "stranger", "expired", "revoked", "recovered", "outdated")
    machines = {name: SimulatedMachine.create(base / "machines" / name) for name in names}
    kbs = kbs_site.make_kbs(base, machines["good"])
    kbs.stop()
    collateral, now = base / "collateral", int(time.time())
    collateral.mkdir()
    settings = kbs.directory / "kbs.toml"
    text = settings.read_text().replace("request_deadline = 30", f"request_deadline = {DEADLINE}")
    text = re.sub(r"(_rate) = \d+", r"\1 = 0", text)  # this one is refused a thousand times
    text = text.replace("[collateral]", f"[collateral]\ndirectory = {json.dumps(str(collateral))}")
    text = text.replace('public_key = "admin.pub"', 'public_key = "admin.pub"\nissuer = "enclave-cc"\naudience = "KBS"')
    settings.write_text(text + '\n[admin.roles.team-a]\nresources = ["team-a/"]\nactions = ["list", "read", "write"]\n')
    conditions = {
        "expired": (now - 90 * 86400, None),
        "revoked": (now, Condition(pck_revoked=True)),
        "recovered": (now, Condition(tcb_status="Revoked")),
        "outdated": (now, Condition(tcb_status="OutOfDate", advisory_ids=("INTEL-SA-00615",))),
    }
    for name, (at, condition) in conditions.items():
        (base / "root.pem").write_text(machines[name].root_certificate_pem())
        kbs.cli("kbs", "root", "add", name, "--certificate", str(base / "root.pem"), "--simulated")
        (collateral / f"{name}.json").write_bytes(machines[name].collateral(at, condition).encode())
    kbs.start()
    kbs.admin.set_resource("default/key/canary", CANARY)
    kbs.admin.add_reference_values([ReferenceValue("sgx_mr_enclave", kbs_site.MR_ENCLAVE.hex())])
    made = Site(kbs, machines, random.Random(SEED))
    yield made
    made.close()
    assert kbs.stop() == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from _start(tmp_path_factory.mktemp("wrong"))


@pytest.mark.slow
def test_a_thousand_wrong_requests(site: Site) -> None:
    assert len(KINDS) + len(SLOW) >= 60
    wrong: list[tuple[str, int, Outcome]] = []
    rounds = -(-REQUESTS // len(KINDS))
    slow = _start_slow(site)
    for name, act in KINDS.items():
        for number in range(rounds):
            outcome, expected = act(site)
            if outcome not in expected:
                wrong.append((name, number, outcome))
        site.serves()
    for thread, results in slow:
        thread.join(60)
        assert not thread.is_alive()
        wrong += results
    site.serves()
    assert wrong == [], f"seed {SEED}"
    assert site.kbs.events("bug") == []
    assert site.kbs.process.poll() is None
    _scan(site)


def _start_slow(site: Site) -> list[tuple[threading.Thread, list[tuple[str, int, Outcome]]]]:
    """Some of each, all at once, while the others go on."""
    started = []
    for name, act in SLOW.items():
        for number in range(4):
            results: list[tuple[str, int, Outcome]] = []

            def run(name: str = name, act: Kind = act, number: int = number, results: list[Any] = results) -> None:
                outcome, expected = act(site)
                if outcome not in expected:
                    results.append((name, number, outcome))

            thread = threading.Thread(target=run)
            thread.start()
            started.append((thread, results))
    return started


def _scan(site: Site) -> None:
    """No secret in what was answered, logged, counted, decided or audited."""
    admin = site.admin()

    def read(path: str) -> bytes:
        answer = site.ask("GET", path, None, admin)
        site.shown.pop()
        assert answer.status == 200, path
        return answer.body

    size = json.loads(read(f"{PREFIX}/admin/audit"))["size"]
    places = {
        "answers": b"\n".join(site.shown),
        "log": site.kbs.log.read_bytes(),
        "metrics": read("/metrics"),
        "decisions": read(f"{PREFIX}/admin/decisions?limit=10000"),
        "audit": read(f"{PREFIX}/admin/audit/log?size={size}&begin=0"),
        "database": b"".join(path.read_bytes() for path in site.kbs.directory.glob("kbs.db*")),
    }
    secrets = {secret for secret in site.secrets if len(secret) >= 20}
    assert len(secrets) > 100
    for place, content in places.items():
        assert len(content) > 100, place
        found = [secret[:16] for secret in secrets if secret in content]
        assert found == [], place
    # The scan itself can find: what is not secret is there.
    assert b"default/key/canary" in places["audit"]
    assert b"quote-refused" in places["decisions"]
    routes = set(re.findall(rb'route="([^"]+)"', places["metrics"]))
    assert b"/kbs/v0/resource/{repository}/{type}/{tag}" in routes
    assert all(b"canary" not in route for route in routes)
