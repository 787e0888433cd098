from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.owner.kbs.admin import AdminGate
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.http import HttpAnswer, HttpRequest
from enclave_cc.owner.kbs.routing import Call, Table
from enclave_cc.owner.kbs.session_keys import SessionKeys
from enclave_cc.owner.page import differences
from enclave_cc.owner.page.paths import PagePaths, _parse_form
from enclave_cc.owner.page.sessions import COOKIE, PageSessions

STORE_KEY = Secret(bytes(range(32)))
KEY = SessionKeys(lambda: (STORE_KEY,), lifetime=300)


def cookie_of(header: str) -> str:
    return header.removeprefix(f"{COOKIE}=").split(";")[0]


def test_a_session_is_read_by_every_process_with_the_key() -> None:
    cookie = cookie_of(PageSessions(KEY, lifetime=60, now=lambda: 1000).begin("alice", "team-a", "owner", "kid"))
    session = PageSessions(KEY, lifetime=60, now=lambda: 1059).read(cookie)
    assert (session.subject, session.role, session.provider) == ("alice", "team-a", "owner")
    assert (session.key, session.expires) == ("kid", 1060)
    with pytest.raises(PeerError, match="expired"):
        PageSessions(KEY, lifetime=60, now=lambda: 1060).read(cookie)
    with pytest.raises(PeerError, match="not of this KBS"):
        PageSessions(SessionKeys(lambda: (Secret(bytes(32)),), lifetime=300), lifetime=60, now=lambda: 1000).read(cookie)


def test_who_has_the_old_store_key_makes_no_cookies_for_long() -> None:
    """A store key that leaked is changed while the KBS serves: what it seals is believed as long as challenges live."""
    clock, new = [0.0], Secret(bytes(reversed(range(32))))
    present = [STORE_KEY]
    serving = PageSessions(SessionKeys(lambda: present, lifetime=300, clock=lambda: clock[0]), lifetime=3600)
    forged = cookie_of(PageSessions(KEY, lifetime=3600).begin("mallory", "admin", "owner", "kid"))
    assert serving.read(forged).subject == "mallory"
    present[:] = [new, STORE_KEY]
    clock[0] += 10
    assert serving.read(cookie_of(serving.begin("alice", "admin", "owner", "kid"))).subject == "alice"
    present[:] = [new]
    clock[0] += 10
    own = cookie_of(serving.begin("alice", "admin", "owner", "kid"))
    clock[0] += 301
    assert serving.read(own).subject == "alice"
    with pytest.raises(PeerError, match="not of this KBS"):
        serving.read(forged)


def test_a_form_key_is_of_one_session() -> None:
    sessions = PageSessions(KEY, lifetime=60)
    first, second = (sessions.read(cookie_of(sessions.begin("alice", "admin", "owner", "kid"))) for _ in range(2))
    sessions.check_form(first, first.form_key)
    for given_key in (None, "", second.form_key, first.form_key[:-1]):
        with pytest.raises(PeerError) as caught:
            sessions.check_form(first, given_key)
        assert caught.value.code == "forbidden"


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.hex()))
def test_any_other_cookie_is_nobody_s(text: str) -> None:
    with pytest.raises(PeerError) as caught:
        PageSessions(KEY, lifetime=60).read(text)
    assert caught.value.code == "unauthenticated"


def test_the_kbs_s_own_trouble_is_in_its_log_and_not_on_the_page() -> None:
    def fail(_: Call) -> HttpAnswer:
        raise EnvironmentFault("database-unreachable", "the KBS database at db.example is gone")

    stream = io.StringIO()
    paths = PagePaths(AdminGate([], {}), PageSessions(KEY, lifetime=60), lambda: Table(()), Log(stream))
    answer = paths._guard(fail)(Call(HttpRequest("GET", "/page/overview", {}, None, None, b""), {}))
    assert answer.status == 503
    assert b"db.example" not in answer.body
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["code"]) == ("fault", "database-unreachable") and "db.example" in line["what"]


@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from([b"a=1", b"a=%ff", b"&", b"=", b"%", b"b=2;", b"+", b"%C3%A9"])).map(b"".join)
)
def test_any_form_is_read_or_refused(body: bytes) -> None:
    try:
        form = _parse_form(body)
    except PeerError:
        return
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in form.items())


_LINES = st.lists(st.sampled_from(["allow := true", "", "\tx", "package policy", "# a"]), max_size=14).map("\n".join)


@given(_LINES, _LINES, st.sampled_from([None, 0, 1, 4]))
def test_both_texts_are_in_their_differences(old: str, new: str, context: int | None) -> None:
    lines = differences.compare(old, new, context=context)
    before, after = old.splitlines(), new.splitlines()
    for line in lines:
        if line.old is not None:
            assert line.text == before[line.old - 1]
        if line.new is not None:
            assert line.text == after[line.new - 1]
    removed = {line.old for line in lines if line.kind == "removed"}
    added = {line.new for line in lines if line.kind == "added"}
    rest = [text for number, text in enumerate(before, 1) if number not in removed]
    assert rest == [text for number, text in enumerate(after, 1) if number not in added]
    if context is None:
        assert [line.text for line in lines if line.kind in ("same", "added")] == after
