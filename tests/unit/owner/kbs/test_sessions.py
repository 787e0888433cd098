"""Sessions on both databases: without storage until they are answered, and then once, on any instance."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.kbs import sessions as module
from enclave_cc.owner.kbs.session_keys import SessionKeys
from enclave_cc.owner.kbs.sessions import Sessions
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database

KEY = Secret(bytes(range(32)))


@pytest.fixture
def instance(database_settings: DatabaseSettings, tmp_path: Path, clock: Any) -> Iterator[Callable[..., Sessions]]:
    """Another KBS process on the same database, as far as sessions go."""
    opened: list[Database] = []

    def start(*keys: Secret, lifetime: int = 300, read: Callable[[], Sequence[Secret]] | None = None) -> Sessions:
        opened.append(open_database(database_settings, tmp_path))
        made = SessionKeys(read or (lambda: keys or (KEY,)), lifetime=lifetime, clock=clock)
        return Sessions(opened[-1], made, lifetime=lifetime, now=clock)

    yield start
    for each in opened:
        each.close()


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(PeerError) as error:
        act()
    assert error.value.code == "unauthenticated"
    return error.value.what


def count_rows(database: Database) -> int:
    with database.read() as db:
        return int(db.execute("SELECT count(*) FROM session").fetchone()[0])


def test_a_challenge_stores_nothing(instance: Callable[..., Sessions], database: Database) -> None:
    here, there = instance(), instance()
    made = here.create("sgx")
    assert re.fullmatch(r"[A-Za-z0-9_-]{78,119}", made.id)
    assert len(base64.b64decode(made.nonce)) == 32
    assert here.open(made.id) == there.open(made.id) == made
    assert count_rows(database) == 0
    assert here.create("sgx").nonce != made.nonce


def test_an_accepted_session_is_known_to_all_and_outlives_its_process(instance: Callable[..., Sessions]) -> None:
    here, there = instance(), instance()
    made = here.create("sgx")
    accepted = there.settle(made, "the token")
    assert (accepted.token, accepted.expires) == ("the token", made.expires)
    for each in (here, there, instance()):
        assert each.open(made.id) == accepted


@pytest.mark.parametrize("token", ["the token", None])
def test_an_answer_counts_once(instance: Callable[..., Sessions], token: str | None) -> None:
    here, there = instance(), instance()
    made = here.create("sgx")
    here.settle(made, token)
    for each in (here, there):
        for second in ("another token", None):
            assert "already" in refused(lambda each=each, second=second: each.settle(made, second))  # type: ignore[misc]
    if token is None:
        assert "already" in refused(lambda: there.open(made.id))
    else:
        assert there.open(made.id).token == token


def test_an_answer_in_another_s_transaction(instance: Callable[..., Sessions], database: Database) -> None:
    here, there = instance(), instance()
    made = here.create("sgx")
    first, second = here.prepare(made, "the token"), there.prepare(made, "another")
    with pytest.raises(KeyError), database.write() as db:
        assert first.insert(db)
        raise KeyError
    assert count_rows(database) == 0
    with database.write() as db:
        assert first.insert(db)
        assert not second.insert(db)
    assert here.conclude(first) == here.open(made.id) == there.open(made.id)
    assert there.open(made.id).token == "the token"


def test_of_many_answers_at_once_one_counts(instance: Callable[..., Sessions]) -> None:
    instances = [instance() for _ in range(4)]
    made = instances[0].create("sgx")
    counted: list[str] = []

    def answer(number: int) -> None:
        try:
            instances[number % 4].settle(made, str(number))
            counted.append(str(number))
        except PeerError:
            pass

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 1
    assert {each.open(made.id).token for each in instances} == set(counted)


def test_sessions_end_with_their_lifetime(instance: Callable[..., Sessions], clock: Any) -> None:
    here, there = instance(), instance(lifetime=1000)
    open_one, accepted = here.create("sgx"), here.settle(here.create("sgx"), "token")
    clock.now += 299
    assert here.open(accepted.id).token == there.open(accepted.id).token == "token"
    clock.now += 1
    for each in (here, there):
        for gone in (open_one, accepted):
            refused(lambda each=each, gone=gone: each.open(gone.id))  # type: ignore[misc]


def test_other_keys_and_other_tees(instance: Callable[..., Sessions]) -> None:
    here = instance()
    made = here.create("sgx")
    refused(lambda: instance(Secret(bytes(32))).open(made.id))
    raw = bytearray(base64.urlsafe_b64decode(made.id + "=="))
    raw[25:28] = b"tdx"
    refused(lambda: here.open(base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()))
    assert here.open(made.id).tee == "sgx"


def test_the_database_shows_neither_id_nor_token(instance: Callable[..., Sessions], database: Database) -> None:
    here = instance()
    one, other = here.settle(here.create("sgx"), "CANARY" * 9), here.settle(here.create("sgx"), "token")
    with database.read() as db:
        rows = db.execute("SELECT * FROM session").fetchall()
    assert "CANARY" not in repr(rows)
    assert one.id not in repr(rows)
    with database.write() as db:  # two rows change places
        for session in (one, other):
            db.execute("UPDATE session SET token = ? WHERE id = ?", (rows[0][2], module._digest(session.id)))
    opened = [instance().open, instance().open]
    assert sum(_opens(act, session.id) for act, session in zip(opened, (one, other), strict=True)) == 1


def _opens(act: Callable[[str], object], session_id: str) -> bool:
    try:
        act(session_id)
    except PeerError:
        return False
    return True


def test_expired_rows_go_by_themselves(instance: Callable[..., Sessions], database: Database, clock: Any) -> None:
    here = instance()
    for _ in range(module._PURGE_EVERY - 1):
        here.settle(here.create("sgx"), None)
    assert count_rows(database) == module._PURGE_EVERY - 1
    clock.now += 301
    here.settle(here.create("sgx"), "token")
    assert count_rows(database) == 1
    assert instance().purge() == 0


def test_what_is_remembered_is_bounded(instance: Callable[..., Sessions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    here = instance()
    made = [here.settle(here.create("sgx"), str(n)) for n in range(6)]
    assert len(here._accepted) == 3
    assert [here.open(each.id).token for each in made] == [str(n) for n in range(6)]


def test_a_change_of_the_store_key_ends_no_session(instance: Callable[..., Sessions], clock: Any) -> None:
    """Two instances that look at the keys at different times, through a whole change."""
    new = Secret(bytes(32))
    held = {"early": (KEY,), "late": (KEY,)}
    early, late = (instance(read=lambda name=name: held[name]) for name in held)  # type: ignore[misc]
    steps = [("early", (new, KEY)), ("late", (new, KEY)), ("early", (new,)), ("late", (new,))]
    begun, accepted = [early.create("sgx")], [early.settle(early.create("sgx"), "before")]
    for name, keys in steps:
        held[name] = keys
        clock.now += 2
        for here, there in ((early, late), (late, early)):
            begun.append(here.create("sgx"))
            accepted.append(there.settle(here.create("sgx"), name))
            for session in accepted:
                assert here.open(session.id) == there.open(session.id) == session
            for session in begun:
                assert here.open(session.id) == there.open(session.id) == session
    fresh = instance(new)
    assert fresh.open(begun[-1].id) == begun[-1]
    assert fresh.open(accepted[-1].id) == accepted[-1]
    clock.now += 301
    early.create("sgx")
    assert len(early._keys.all()) == 1


def test_keys_that_cannot_be_read_for_a_moment(instance: Callable[..., Sessions], clock: Any) -> None:
    present = [KEY]

    def read() -> Sequence[Secret]:
        if not present:
            raise UsageError("not-found", "no file")
        return tuple(present)

    here = instance(read=read)
    made = here.create("sgx")
    present.clear()
    clock.now += 5
    assert here.open(made.id) == made
    with pytest.raises(UsageError):
        instance(read=read)
