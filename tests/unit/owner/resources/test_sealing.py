"""Store keys: several at once, a change of keys under a running store, and one that is killed in the middle."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies
from resource_store import A, B, refused

from enclave_cc.crypto import aead
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.resources.database_store import DatabaseResourceStore
from enclave_cc.owner.resources.files import FileObjects
from enclave_cc.owner.resources.heads import Head
from enclave_cc.owner.resources.sealing import Keyring, Sealed, compute_key_id
from enclave_cc.owner.resources.store import ResourceStore
from enclave_cc.owner.resources.store_keys import KeyFile, KeyVariable
from enclave_cc.owner.resources.versioned import VersionedStore
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
from enclave_cc.wire.rcar.uri import ResourcePath

OLD, NEW = Secret(bytes(32)), Secret(bytes(range(32)))
Store = DatabaseResourceStore | VersionedStore


@pytest.fixture(params=["files", "database"])
def open_store(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Callable[..., Store]:
    if request.param == "files":
        return lambda *keys: VersionedStore(FileObjects(tmp_path / "r"), Keyring(keys))
    return lambda *keys: DatabaseResourceStore(database, Keyring(keys))


def fill(store: ResourceStore, paths: int = 5, versions: int = 3) -> dict[tuple[ResourcePath, int], Secret]:
    """Values by path and version; one path is deleted."""
    values = {}
    for number in range(paths):
        path = ResourcePath("r", "t", f"p{number}")
        for _ in range(versions):
            value = Secret(os.urandom(50))
            values[path, store.put(path, value)] = value
    store.put(ResourcePath("r", "t", "gone"), Secret(b"1"))
    store.delete(ResourcePath("r", "t", "gone"))
    return values


def test_reseal(open_store: Callable[..., Store]) -> None:
    values = fill(open_store(OLD))
    both = open_store(NEW, OLD)
    assert {each: both.get(*each).value for each in values} == values
    assert sum(both.reseal()) == len(values)
    assert sum(both.reseal()) == 0
    alone = open_store(NEW)
    assert {each: alone.get(*each).value for each in values} == values
    assert all(refused(lambda each=each: open_store(OLD).get(*each)).code == "environment" for each in values)
    assert alone.history(ResourcePath("r", "t", "gone"))[0].removed is not None


def test_reseal_goes_on_where_it_was_stopped(open_store: Callable[..., Store]) -> None:
    values = fill(open_store(OLD))
    done = 0
    for _ in values:
        steps = open_store(NEW, OLD).reseal()
        done += next((count for count in steps if count), 0)
        steps.close()  # type: ignore[attr-defined]
        assert {each: open_store(NEW, OLD).get(*each).value for each in values} == values
    assert done == len(values)
    assert sum(open_store(NEW).reseal()) == 0


def test_reseal_beside_writers(open_store: Callable[..., Store]) -> None:
    values = fill(open_store(OLD))
    writer, stop = open_store(NEW, OLD), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            path, value = ResourcePath("r", "t", f"p{number % 5}"), Secret(os.urandom(10))
            values[path, writer.put(path, value)] = value
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    sum(open_store(NEW, OLD).reseal())
    stop.set()
    thread.join()
    alone = open_store(NEW)
    for path in {path for path, _ in values}:
        for each in alone.history(path):
            assert alone.get(path, each.version).value == values[path, each.version]


def test_a_changed_value_is_not_sealed_anew(tmp_path: Path) -> None:
    """What does not open stays as it is, and is told: a change of keys must not bless it."""
    store = VersionedStore(FileObjects(tmp_path), Keyring([OLD]))
    store.put(A, Secret(b"1"))
    (tmp_path / "default/key/a/1").write_bytes(bytes([1]) + bytes(60))
    assert refused(lambda: sum(VersionedStore(FileObjects(tmp_path), Keyring([NEW, OLD])).reseal())).code == "environment"


def test_a_serving_store_follows(tmp_path: Path) -> None:
    """It seals under the new key soon, opens what is under it at once, and needs the old one until it is dropped."""
    source = KeyFile(tmp_path / "store.key")
    (tmp_path / "store.key").write_text(base64.b64encode(OLD.reveal()).decode() + "\n")
    ring = Keyring(source.read(), read_again=source.read)
    before = ring.seal("n", 1, Secret(b"x"))
    other = KeyFile(tmp_path / "store.key")
    other.begin_change()
    new, old = other.read()
    assert (old, new != OLD) == (OLD, True)
    assert ring.open("n", 1, Keyring([new]).seal("n", 1, Secret(b"y"))) == Secret(b"y")  # a key id it did not know
    assert ring.seal("n", 2, Secret(b"x")).key_id == compute_key_id(new)
    assert ring.open("n", 1, before) == Secret(b"x")
    other.begin_change()  # again, as after a kill: no third key
    assert other.read() == (new, old)
    other.wait_until_known()
    assert other.end_change() == ""
    assert source.read() == (new,)
    assert (tmp_path / "store.key").stat().st_mode & 0o077 == 0


def test_a_source_that_has_gone_is_a_fault_and_no_missing_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store.key").write_text(base64.b64encode(OLD.reveal()).decode())
    source = KeyFile(tmp_path / "store.key")
    store = VersionedStore(FileObjects(tmp_path / "r"), Keyring(source.read(), read_again=source.read))
    store.put(A, Secret(b"1"))
    VersionedStore(FileObjects(tmp_path / "r"), Keyring([NEW])).put(B, Secret(b"2"))
    (tmp_path / "store.key").unlink()
    assert store.get(A).value == Secret(b"1")  # what is known goes on
    assert refused(lambda: store.get(B)).code == "environment"
    monkeypatch.setattr("enclave_cc.owner.resources.sealing.FRESH_SECONDS", -1)
    assert refused(lambda: store.put(A, Secret(b"2"))).code == "environment"
    assert store.get(A).version == 1


def test_a_key_id_tells_nothing_of_the_key() -> None:
    assert compute_key_id(OLD) != compute_key_id(NEW)
    assert compute_key_id(NEW) not in NEW.reveal()


def test_values_from_before_there_were_key_ids() -> None:
    nonce = bytes(12)
    sealed = aead.Aead(OLD).encrypt(nonce, b"value", b"enclave-cc/kbs-resource/1\0a/b/c\0" + (7).to_bytes(8))
    assert Keyring([NEW, OLD]).open("a/b/c", 7, Sealed(b"", nonce, sealed)) == Secret(b"value")
    assert refused(lambda: Keyring([NEW]).open("a/b/c", 7, Sealed(b"", nonce, sealed))).code == "environment"


def test_resources_of_the_first_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Values, versions and removed paths of a database from before histories come through, on both databases."""
    server = request.getfixturevalue("postgresql")
    name = server.create_database()
    for settings in (DatabaseSettings(f"sqlite:{tmp_path / 'old.db'}"), DatabaseSettings(server.url(name))):
        database = open_database(settings, tmp_path, create=True)
        every = migration.list_names()
        with monkeypatch.context() as patch:
            patch.setattr(migration, "list_names", lambda every=every: [each for each in every if each < "0030"])
            migration.migrate(database)
        with database.write() as db:
            for path, version, value in (("a/b/c", 3, b"three"), ("a/b/c", 4, b"four!"), ("a/b/gone", 7, None), ("a/b/e", 1, b"")):
                nonce = os.urandom(12)
                aad = b"enclave-cc/kbs-resource/1\0" + path.encode() + b"\0" + version.to_bytes(8)
                sealed = None if value is None else aead.Aead(OLD).encrypt(nonce, value, aad)
                row = (path, version, 1000 + version, None if value is None else nonce, sealed)
                db.execute("INSERT INTO resource VALUES (?, ?, ?, ?, ?)", row)
        migration.migrate(database)
        store = DatabaseResourceStore(database, Keyring([NEW, OLD]))
        listed = [(str(info.path), info.version, info.size, info.created) for info in store.list().items]
        assert listed == [("a/b/c", 4, 5, 1004), ("a/b/e", 1, 0, 1001)]
        path, gone = ResourcePath.parse("a/b/c"), ResourcePath.parse("a/b/gone")
        assert [store.get(path, version).value for version in (3, 4, None)] == [
            Secret(b"three"),
            Secret(b"four!"),
            Secret(b"four!"),
        ]
        assert refused(lambda store=store, gone=gone: store.get(gone)).code == "not-found"
        assert store.history(gone)[0].removed == 1007
        assert (store.put(gone, Secret(b"new")), store.put(path, Secret(b"five"))) == (8, 5)
        assert sum(store.reseal()) == 3
        assert DatabaseResourceStore(database, Keyring([NEW])).get(path, 3).value == Secret(b"three")
        database.close()
    server.drop_database(name)


PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    from enclave_cc.crypto.secret import Secret
    from enclave_cc.owner.resources.database_store import DatabaseResourceStore
    from enclave_cc.owner.resources.files import FileObjects
    from enclave_cc.owner.resources.sealing import Keyring
    from enclave_cc.owner.resources.versioned import VersionedStore
    from enclave_cc.owner.storage.settings import DatabaseSettings, open_database
    ring = Keyring([Secret(bytes(range(32))), Secret(bytes(32))])
    directory = Path(sys.argv[1])
    stores = [VersionedStore(FileObjects(directory / "r"), ring)]
    stores.append(DatabaseResourceStore(open_database(DatabaseSettings(sys.argv[2]), directory), ring))
    for store in stores:
        for count in store.reseal():
            print(count, flush=True)
    print("done", flush=True)
""")


def test_reseal_killed_at_any_moment(database_settings: DatabaseSettings, tmp_path: Path) -> None:
    """SIGKILL while values are sealed anew: each opens before and after, and the next run ends the work."""
    database = open_database(database_settings, tmp_path)
    stores: list[tuple[Callable[[Keyring], Store], dict[tuple[ResourcePath, int], Secret]]] = []
    openers: tuple[Callable[[Keyring], Store], ...] = (
        lambda ring: VersionedStore(FileObjects(tmp_path / "r"), ring),
        lambda ring: DatabaseResourceStore(database, ring),
    )
    stores = [(opener, fill(opener(Keyring([OLD])), paths=6, versions=2)) for opener in openers]
    finished = False
    for attempt in range(40):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), database_settings.url], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(1 + attempt % 4):
            if child.stdout.readline() == "done\n":
                finished = True
                break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        for opener, values in stores:
            both = opener(Keyring([NEW, OLD]))
            assert {each: both.get(*each).value for each in values} == values
        if finished:
            break
    for opener, values in stores:
        sum(opener(Keyring([NEW, OLD])).reseal())
        alone = opener(Keyring([NEW]))
        assert {each: alone.get(*each).value for each in values} == values
    database.close()


# sources


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "bad-config"),
        (b"CANARY!", "bad-config"),
        (b"\xff\xfe", "bad-config"),
        (base64.b64encode(b"CANARY" * 5), "bad-config"),
        (b"pkcs11:" + base64.b64encode(bytes(60)), "bad-config"),
        (None, "not-found"),
    ],
)
def test_key_files_that_are_refused(tmp_path: Path, content: bytes | None, code: str) -> None:
    if content is not None:
        (tmp_path / "k").write_bytes(content)
    for act in (KeyFile(tmp_path / "k").read, KeyFile(tmp_path / "k").check, KeyFile(tmp_path / "k").begin_change):
        error = refused(act)
        assert error.code == code
        assert "CANARY" not in repr(error) + str(error)


def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = KeyVariable("STORE_KEY_OF_A_TEST")
    assert refused(source.read).code == "not-found"
    old, new = (base64.b64encode(key.reveal()).decode() for key in (OLD, NEW))
    monkeypatch.setenv("STORE_KEY_OF_A_TEST", f" {old}\n")
    assert source.read() == (OLD,)
    assert refused(source.begin_change).code == "wrong-state"
    monkeypatch.setenv("STORE_KEY_OF_A_TEST", f"{new}, {old}")
    assert source.read() == (NEW, OLD)
    source.begin_change()
    assert "STORE_KEY_OF_A_TEST" in source.end_change()
    for wrong in ("CANARY", "Q0FOQVJZ", f"{new},", f"{new},CANARY"):
        monkeypatch.setenv("STORE_KEY_OF_A_TEST", wrong)
        error = refused(source.read)
        assert error.code == "bad-config"
        chain = repr(error) + repr(error.__cause__) + str(error)
        assert "CANARY" not in chain and new not in chain


def test_two_changes_at_once(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "k").write_text(base64.b64encode(OLD.reveal()).decode())
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert refused(KeyFile(tmp_path / "k").begin_change).code == "wrong-state"
    os.close(descriptor)
    KeyFile(tmp_path / "k").begin_change()
    assert len(KeyFile(tmp_path / "k").read()) == 2


# what lies in a back-end is not trusted


@hypothesis.given(strategies.binary(max_size=200))
def test_any_bytes_are_a_sealed_value_or_refused(data: bytes) -> None:
    try:
        sealed = Sealed.parse(data)
    except PeerError:
        return
    assert sealed.encode() == data
    assert refused(lambda: Keyring([OLD]).open("a/b/c", 1, sealed)).code == "environment"


_JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers(-3, 3) | strategies.text(max_size=3),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(
            strategies.sampled_from(["format", "last", "tags", "doomed", "versions", "version", "size"]), inner
        )
    ),
)


@hypothesis.given(strategies.binary(max_size=100) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    try:
        head = Head.parse(data)
    except PeerError:
        return
    assert Head.parse(head.encode()) == head


def test_queries_use_indexes(database: Database) -> None:
    """What grows with the number of resources, removed ones too, is walked by index: in SQLite's own plan."""
    if database.dialect != "sqlite":
        return
    seen: list[str] = []

    class Recording:
        def __init__(self, inner: Database) -> None:
            self.inner = inner
            self.dialect = inner.dialect

        def read(self) -> object:
            return self

        def __enter__(self) -> Recording:
            self.block = self.inner.read()
            self.connection = self.block.__enter__()
            return self

        def __exit__(self, *details: object) -> None:
            self.block.__exit__(*details)  # type: ignore[arg-type]

        def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> object:
            plan = self.connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
            seen.extend(str(line[-1]) for line in plan)
            return self.connection.execute(sql, parameters)

    store = DatabaseResourceStore(Recording(database), Keyring([OLD]))  # type: ignore[arg-type]
    DatabaseResourceStore(database, Keyring([OLD])).put(B, Secret(b"1"), tags={"a": "b"})
    store.get(B)
    store.get(B, 1)
    store.history(B)
    store.list("default/", after="default/key/a")
    store.list(tags={"a": "b"})
    assert [step for step in seen if step.startswith("SCAN") and not step.startswith("SCAN p")] == []
    assert any("resource_present" in step for step in seen)
