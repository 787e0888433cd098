"""The RCAR client against scripted answers: ours, upstream's, and wrong ones. The real KBS is in tests/integration/kbs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from enclave_cc.crypto import jwe
from enclave_cc.crypto.jwk import PublicJwk, TeeKey
from enclave_cc.crypto.jws import SigningKey
from enclave_cc.crypto.self_signed import make_certificate
from enclave_cc.enclave.attest.client import _PAUSES, KbsClient
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError
from enclave_cc.transport.https import Response
from enclave_cc.wire.rcar import binding, messages

URI = "kbs:///default/key/one"
NONCE = "bm9uY2U="
PEM = make_certificate(
    SigningKey.generate("ES256").to_pem(), common_name="x", hosts=[], not_before=1, not_after=4_000_000_000
).decode()


class Platform:
    """Quotes that are nothing but the report data."""

    def __init__(self) -> None:
        self.quoted: list[bytes] = []

    def quote(self, data: bytes) -> bytes:
        self.quoted.append(data)
        return b"quote over " + data


class ScriptedKbs:
    """Answers in place of `HttpsClient`; each path's answers can be put in first."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes | None, dict[str, str]]] = []
        self.next: dict[str, list[Response | Exception]] = {}
        self.key: PublicJwk | None = None
        self.handshakes = 0

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Any = None, *, deadline: float | None = None
    ) -> Response:
        assert deadline is not None
        self.seen.append((method, path, body, dict(headers)))
        last = path.rsplit("/", 1)[-1] if path.endswith(("auth", "attest")) else "resource"
        if self.next.get(last):
            prepared = self.next[last].pop(0)
            if isinstance(prepared, Exception):
                raise prepared
            return prepared
        if last == "auth":
            self.handshakes += 1
            cookie = f"{messages.COOKIE}=s{self.handshakes}; Expires=Thu, 01 Jan 2099 00:00:00 GMT"
            return Response(200, (("set-cookie", cookie),), messages.Challenge(NONCE).encode())
        if last == "attest":
            self.key = messages.Attestation.parse(body or b"").tee_public_key
            return Response(200, (), messages.encode_token_answer("t"))
        assert self.key is not None
        return Response(200, (), jwe.encrypt(b"the key", self.key))

    def close(self) -> None:
        pass


@pytest.fixture
def kbs() -> ScriptedKbs:
    return ScriptedKbs()


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def client(kbs: ScriptedKbs, platform: Platform) -> KbsClient:
    made = KbsClient("https://127.0.0.1:1", PEM, platform, b"init = 1", 10)  # type: ignore[arg-type]
    made._http = kbs  # type: ignore[assignment]
    return made


def problem(status: int, variant: str = "X", **members: Any) -> Response:
    return Response(status, (), messages.Problem(variant, "the owner's reason", **members).encode())


def refused(call: Callable[[], object]) -> EnclaveCcError:
    with pytest.raises(EnclaveCcError) as caught:
        call()
    return caught.value


def test_one_handshake_for_many_resources(client: KbsClient, kbs: ScriptedKbs, platform: Platform) -> None:
    assert [client.get(URI) for _ in range(3)] == [b"the key"] * 3
    assert [path for _, path, _, _ in kbs.seen] == ["/kbs/v0/auth", "/kbs/v0/attest", *["/kbs/v0/resource/default/key/one"] * 3]
    assert [headers.get("Cookie") for _, _, _, headers in kbs.seen] == [None, *[f"{messages.COOKIE}=s1"] * 4]
    attestation = messages.Attestation.parse(kbs.seen[1][2] or b"")
    assert attestation.init_data == messages.InitDataBody("init = 1")
    expected = binding.pad(binding.compute_report_data(NONCE, attestation.tee_public_key, ""))
    assert platform.quoted == [expected]
    assert messages.parse_sgx_evidence(attestation.primary_evidence) == b"quote over " + expected
    assert json.loads(kbs.seen[0][2] or b"")["version"] == "0.4.0"


def test_an_ended_session_costs_one_new_handshake(client: KbsClient, kbs: ScriptedKbs) -> None:
    client.get(URI)
    kbs.next["resource"] = [problem(401, "TokenNotFound")]
    assert client.get(URI) == b"the key"
    assert kbs.handshakes == 2
    assert (
        len(
            {
                messages.Attestation.parse(body or b"").tee_public_key.members["x"]
                for _, p, body, _ in kbs.seen
                if p.endswith("attest")
            }
        )
        == 2
    )


def test_a_second_401_is_final(client: KbsClient, kbs: ScriptedKbs) -> None:
    kbs.next["resource"] = [problem(401), problem(401)]
    assert refused(lambda: client.get(URI)).code == "kbs-denied"
    assert kbs.handshakes == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(403, "PolicyDeny", code="measurement-unknown", id="42"), "measurement-unknown"),
        (problem(403, "PolicyDeny", code="kbs-denied", id="42"), "kbs-denied"),
        (problem(404, "ResourceNotFound", code="key-missing", id="42"), "key-missing"),
        (problem(403, "PolicyDeny"), "kbs-denied"),
        (problem(404, "PluginNotFound"), "key-missing"),
        (problem(403, code="signature-wrong"), "kbs-denied"),  # not a KBS's to say
        (problem(403, code="no-such-code"), "kbs-denied"),
        (problem(500), "kbs-unreachable"),
        (Response(403, (), b"<html>"), "kbs-protocol"),
        (Response(302, (), b""), "kbs-protocol"),
        (Response(200, (), b"not jwe"), "kbs-protocol"),
        (Response(200, (), jwe.encrypt(b"x", TeeKey.generate().public)), "jwe-broken"),
    ],
)
def test_refused_resources(client: KbsClient, kbs: ScriptedKbs, answer: Response, code: str) -> None:
    kbs.next["resource"] = [answer]
    error = refused(lambda: client.get(URI))
    assert error.code == code
    if b'"id"' in answer.body:
        assert error.what.endswith("id 42")
    assert "reason" not in str(error)  # the host reads it
    assert kbs.handshakes == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(401, "AttestationError", code="untrusted-root", id="42"), "untrusted-root"),
        (problem(401, "AttestationError", code="debug-enclave", id="42"), "debug-enclave"),
        (problem(401, "AttestationError"), "quote-refused"),
        (Response(401, (), b"{}"), "kbs-protocol"),
    ],
)
def test_refused_evidence(client: KbsClient, kbs: ScriptedKbs, answer: Response, code: str) -> None:
    kbs.next["attest"] = [answer]
    assert refused(lambda: client.get(URI)).code == code
    assert kbs.handshakes == 1
    assert client.get(URI) == b"the key"  # nothing of the refused session is kept


def test_attesting_ahead(client: KbsClient, kbs: ScriptedKbs) -> None:
    client.attest()
    client.attest()
    assert client.get(URI) == b"the key"
    assert kbs.handshakes == 1


def test_a_refusal_met_ahead_is_told_once_more_without_asking(client: KbsClient, kbs: ScriptedKbs) -> None:
    kbs.next["attest"] = [problem(401, "AttestationError", code="debug-enclave", id="42")]
    first = refused(client.attest)
    seen = len(kbs.seen)
    assert refused(lambda: client.get(URI)) is first
    assert len(kbs.seen) == seen
    assert client.get(URI) == b"the key"


GONE = EnvironmentFault("kbs-unreachable", "x")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("trouble", [GONE, problem(503, code="draining"), problem(429, code="rate-limited")])
@pytest.mark.parametrize("step", ["auth", "attest", "resource"])
def test_what_got_no_answer_is_sent_again(
    client: KbsClient, kbs: ScriptedKbs, pauses: list[float], step: str, trouble: Response | EnclaveCcError
) -> None:
    kbs.next[step] = [trouble, trouble]
    assert client.get(URI) == b"the key"
    assert kbs.handshakes == 1
    same = [(body, headers) for _, path, body, headers in kbs.seen if step in path]
    assert len(same) == 3
    assert same[1:] == same[:-1]
    assert pauses == [0.05, 0.1]


@pytest.mark.parametrize("trouble", [GONE, problem(503, code="disk-full")])
def test_a_kbs_that_stays_away(
    client: KbsClient, kbs: ScriptedKbs, pauses: list[float], trouble: Response | EnclaveCcError
) -> None:
    kbs.next["auth"] = [trouble] * (len(_PAUSES) + 1)
    assert refused(client.attest).code == "kbs-unreachable"
    assert pauses == list(_PAUSES)
    assert client.get(URI) == b"the key"


def test_no_pause_outlasts_the_deadline(kbs: ScriptedKbs, platform: Platform, pauses: list[float]) -> None:
    client = KbsClient("https://127.0.0.1:1", PEM, platform, None, 0.7)  # type: ignore[arg-type]
    client._http = kbs  # type: ignore[assignment]
    kbs.next["auth"] = [GONE] * 20
    assert refused(client.attest).code == "kbs-unreachable"
    assert max(pauses) <= 0.4


def test_a_challenge_that_an_unanswered_attempt_used_up(client: KbsClient, kbs: ScriptedKbs, pauses: list[float]) -> None:
    kbs.next["attest"] = [GONE, problem(401, "TokenNotFound")]
    assert client.get(URI) == b"the key"
    assert kbs.handshakes == 2


@pytest.mark.parametrize(
    "answer",
    [
        problem(401, "AttestationError", code="kbs-protocol"),
        problem(401, "AttestationError"),
        Response(200, (), messages.Challenge(NONCE).encode()),  # no cookie
        Response(200, (("set-cookie", f"{messages.COOKIE}=x"),), b"{}"),
    ],
)
def test_refused_sessions(client: KbsClient, kbs: ScriptedKbs, answer: Response) -> None:
    kbs.next["auth"] = [answer]
    assert refused(lambda: client.get(URI)).code == "kbs-protocol"


def test_faults_of_the_way_pass_through(client: KbsClient, kbs: ScriptedKbs) -> None:
    kbs.next["auth"] = [EnvironmentFault("deadline", "x"), PeerError("kbs-identity", "x")]
    assert refused(lambda: client.get(URI)).code == "deadline"
    assert refused(lambda: client.get(URI)).code == "kbs-identity"
    assert client.get(URI) == b"the key"


def test_uris_are_checked_before_anything_is_sent(client: KbsClient, kbs: ScriptedKbs) -> None:
    assert refused(lambda: client.get("kbs:///../../etc/passwd")).code == "malformed"
    assert kbs.seen == []


def test_the_deadline_covers_the_handshake(kbs: ScriptedKbs, platform: Platform) -> None:
    client = KbsClient("https://127.0.0.1:1", PEM, platform, None, 0)  # type: ignore[arg-type]
    client._http = kbs  # type: ignore[assignment]
    assert refused(lambda: client.get(URI)).code == "deadline"


def test_close_forgets_the_session(client: KbsClient, kbs: ScriptedKbs) -> None:
    client.get(URI)
    client.close()
    client.get(URI)
    assert kbs.handshakes == 2
