"""KBS-006: a KBS operator, or somebody with the database or an export in hand, changes what the audit log says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto import ed25519
from enclave_cc.errors import PeerError, UsageError
from enclave_cc.owner.audit.export import DatabaseSource, compose_export
from enclave_cc.owner.audit.kinds import ATTESTATION, DENIAL, POLICY_SET, RELEASE, RESOURCE_SET, Draft
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.audit.verification import Verified, verify_export
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Database
from enclave_cc.owner.storage.sqlite import SqliteDatabase
from enclave_cc.wire.audit.entry import Entry
from enclave_cc.wire.audit.export import CheckpointLine, EntryLine, Header
from enclave_cc.wire.tlog.checkpoint import Checkpoint
from enclave_cc.wire.tlog.note import NoteSigner

SIGNER = NoteSigner("enclave-cc.audit/test", ed25519.SigningKey.generate())
KEYS = [SIGNER.verifier]
ACME, OTHER = "acme/key/db", "umbrella/key/t-virus"


def drafts() -> list[Draft]:
    made = [
        Draft.make("start", {"instance": "one"}),
        Draft.make(POLICY_SET, {"version": 1}, subject=""),
        Draft.make(RESOURCE_SET, {"version": 1}, subject=ACME),
        Draft.make(RESOURCE_SET, {"version": 1}, subject=OTHER),
    ]
    for i, path in enumerate([ACME, OTHER, ACME, "acme-two/key/db", ACME, ACME]):
        made.append(Draft.make(ATTESTATION, {"tee": "sgx"}, decision=f"att{i}"))
        made.append(Draft.make(DENIAL if i == 4 else RELEASE, {}, subject=path, decision=f"rel{i}", attestation=f"att{i}"))
    made.append(Draft.make(RELEASE, {}, subject=ACME, decision="again", attestation="att0"))
    return made


class Scene:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.log = AuditLog(database, SIGNER)
        for each in drafts()[:8]:
            self.log.append(each)
        self.kept = self.log.checkpoint()
        for each in drafts()[8:]:
            self.log.append(each)

    def export(self, prefix: str | None = None, kept: list[bytes] | None = None) -> list[bytes]:
        return list(compose_export(DatabaseSource(self.database), self.log.checkpoint(), prefix=prefix, kept=kept or []))

    def execute(self, sql: str, *parameters: object) -> None:
        with self.database.write() as db:
            db.execute(sql, parameters)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    database = SqliteDatabase(tmp_path / "kbs.db", create=True)
    migration.migrate(database)
    yield Scene(database)
    database.close()


def refuse(lines: list[bytes], kept: list[bytes] | None = None) -> PeerError:
    with pytest.raises(PeerError) as caught:
        verify_export(lines, KEYS, kept or [])
    return caught.value


def change(line: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(line)
    edit(value)
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def indices(lines: list[bytes]) -> list[int]:
    return [json.loads(line)["entry"]["index"] for line in lines if b'"entry"' in line]


# what is honest verifies


def test_the_whole_log(scene: Scene) -> None:
    found = verify_export(scene.export(), KEYS, [scene.kept])
    assert (found.entries, found.prefix, found.older) == (17, None, (1, 8, 17))


def test_an_owner_sees_what_concerns_it_and_nothing_of_others(scene: Scene) -> None:
    lines = scene.export("acme", [scene.kept])
    found = verify_export(lines, KEYS, [scene.kept])
    assert found.older == (8,)
    entries = [json.loads(line)["entry"] for line in lines if b'"entry"' in line]
    assert [entry["subject"] and entry["subject"]["path"] for entry in entries] == [
        "",
        ACME,
        None,
        ACME,
        None,
        ACME,
        None,
        ACME,
        None,
        ACME,
        ACME,
    ]
    assert [entry["document"]["decision"] for entry in entries if entry["kind"] == ATTESTATION] == ["att0", "att2", "att4", "att5"]
    text = b"".join(lines)
    assert b"umbrella" not in text and b"acme-two" not in text and b"att1" not in text and b"att3" not in text


@pytest.mark.parametrize(("prefix", "count"), [("", 17 - 1), ("acme/key", 11), (ACME, 11), ("acme/other", 1), ("nobody", 1)])
def test_prefixes_end_at_segments(scene: Scene, prefix: str, count: int) -> None:
    assert verify_export(scene.export(prefix), KEYS).entries == count


def test_a_prefix_is_the_beginning_of_a_path(scene: Scene) -> None:
    for prefix in ("/", "a//b", "a/b/c/d", "a b", "acme/"):
        with pytest.raises(UsageError):
            scene.export(prefix)


# the database was changed


def rewrite(scene: Scene, index: int, edit: Callable[[dict[str, Any]], object]) -> Entry:
    with scene.database.read() as db:
        value = json.loads(db.execute("SELECT entry FROM audit_entry WHERE leaf_index = ?", (index,)).fetchone()[0])
    edit(value)
    entry = Entry.from_json(value)
    scene.execute("UPDATE audit_entry SET entry = ?, leaf_hash = ? WHERE leaf_index = ?", entry.encode(), entry.hash(), index)
    return entry


@pytest.mark.parametrize("index", range(16))
def test_a_changed_entry_is_named(scene: Scene, index: int) -> None:
    checkpoint = scene.log.checkpoint()
    rewrite(scene, index, lambda value: value["document"].update(forged=True))
    error = refuse(list(compose_export(DatabaseSource(scene.database), checkpoint)))
    assert error.code == "audit-broken"
    assert f"entry {index} was changed" in error.what


def test_an_entry_that_is_no_entry_any_more_is_named(scene: Scene) -> None:
    scene.execute("UPDATE audit_entry SET entry = ? WHERE leaf_index = 5", b"{}")
    with pytest.raises(PeerError, match="audit-broken: entry 5 was changed"):
        scene.export()


def test_a_chain_that_was_forged_from_an_entry_on_does_not_fit_the_checkpoints(scene: Scene) -> None:
    """The forger has the database and no key: all hashes are recomputed, signatures cannot be."""
    checkpoint = scene.log.checkpoint()
    entry = rewrite(scene, 10, lambda value: value["document"].update(forged=True))
    for index in range(11, 17):
        previous = entry.hash().hex()
        entry = rewrite(scene, index, lambda value, previous=previous: value.update(previous=previous))
    error = refuse(list(compose_export(DatabaseSource(scene.database), checkpoint)))
    assert error.code == "audit-broken"
    assert "an entry from 8 to 16 was changed" in error.what


def test_a_removed_entry(scene: Scene) -> None:
    checkpoint = scene.log.checkpoint()
    scene.execute("DELETE FROM audit_entry WHERE leaf_index = 9")
    error = refuse(list(compose_export(DatabaseSource(scene.database), checkpoint)))
    assert (error.code, "entry 9 is missing" in error.what) == ("audit-truncated", True)


def test_a_log_without_its_end(scene: Scene) -> None:
    checkpoint = scene.log.checkpoint()
    scene.execute("DELETE FROM audit_entry WHERE leaf_index >= 12")
    error = refuse(list(compose_export(DatabaseSource(scene.database), checkpoint)))
    assert (error.code, "ends after 12 entries" in error.what) == ("audit-truncated", True)


# the operator signs another history


def fork(scene: Scene, tmp_path: Path, count: int) -> list[bytes]:
    database = SqliteDatabase(tmp_path / "fork.db", create=True)
    migration.migrate(database)
    log = AuditLog(database, SIGNER)
    for each in drafts()[1 : count + 1]:
        log.append(each)
    lines = list(compose_export(DatabaseSource(database), log.checkpoint()))
    database.close()
    return lines


@pytest.mark.parametrize(("count", "code"), [(6, "audit-truncated"), (8, "audit-forked"), (12, "audit-forked")])
def test_another_history_does_not_continue_a_kept_checkpoint(scene: Scene, tmp_path: Path, count: int, code: str) -> None:
    lines = fork(scene, tmp_path, count)
    assert verify_export(lines, KEYS).entries == count  # in itself it is sound
    assert refuse(lines, [scene.kept]).code == code


def test_another_history_cannot_be_proven_to_an_owner(scene: Scene) -> None:
    lines = scene.export("acme")
    error = refuse(lines, [scene.kept])
    assert (error.code, "no proof that it continues" in error.what) == ("audit-truncated", True)
    forged = Checkpoint(SIGNER.name, 8, bytes(32)).sign(SIGNER).encode()
    assert refuse(scene.export("acme", [forged])).code == "audit-forked"
    with pytest.raises(UsageError):
        scene.export("acme", [Checkpoint(SIGNER.name, 99, bytes(32)).sign(SIGNER).encode()])


def test_two_checkpoints_of_one_size(scene: Scene) -> None:
    forged = Checkpoint(SIGNER.name, 17, bytes(32)).sign(SIGNER).encode()
    for lines in (scene.export(), scene.export("acme")):
        assert refuse(lines, [forged]).code == "audit-forked"


# another key signs


def test_another_key(scene: Scene) -> None:
    other = NoteSigner(SIGNER.name, ed25519.SigningKey.generate())
    for prefix in (None, "acme"):
        lines = scene.export(prefix)
        checkpoint = Checkpoint.parse(json.loads(lines[0])["checkpoint"].split("\n\n")[0] + "\n")
        lines[0] = Header(SIGNER.name, prefix, checkpoint.sign(other).encode()).encode()
        assert refuse(lines).code == "audit-signature"


def test_another_logs_checkpoint(scene: Scene) -> None:
    other = NoteSigner("enclave-cc.audit/other", ed25519.SigningKey.generate())
    kept = Checkpoint(other.name, 8, bytes(32)).sign(other).encode()
    with pytest.raises(PeerError, match="audit-signature"):
        verify_export(scene.export(), [*KEYS, other.verifier], [kept])
    lines = scene.export()
    lines[0] = change(lines[0], lambda value: value.update(origin="another"))
    assert refuse(lines).code == "audit-signature"


# the file was changed


@pytest.mark.parametrize("prefix", [None, "acme"])
def test_every_change_of_an_export_is_refused(scene: Scene, prefix: str | None) -> None:
    lines = scene.export(prefix, [scene.kept] if prefix else [])
    assert isinstance(verify_export(lines, KEYS), Verified)
    for place in range(len(lines)):
        cut, doubled = lines[:place] + lines[place + 1 :], lines[: place + 1] + lines[place:]
        assert refuse(lines[:place]).code in ("audit-truncated", "malformed")
        if b'"note"' not in lines[place]:  # nobody promised an older checkpoint
            assert refuse(cut).code in ("audit-broken", "audit-truncated", "malformed")
            assert refuse(doubled).code in ("audit-broken", "audit-truncated", "malformed")
        pair = b"".join(lines[place : place + 2])
        # An attestation may stand anywhere before the entry that names it.
        if place + 1 < len(lines) and b'"note"' not in pair and (prefix is None or b'"kind":"attestation"' not in pair):
            swapped = [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]
            assert refuse(swapped).code in ("audit-broken", "audit-truncated", "malformed")
        assert refuse([*lines[:place], lines[place][:-1]]).code == "audit-truncated"
        for at in range(0, len(lines[place]) - 1, 7):
            broken = bytearray(lines[place])
            broken[at] ^= 1
            with pytest.raises(PeerError):
                verify_export([*lines[:place], bytes(broken), *lines[place + 1 :]], KEYS)


def test_an_owners_gap_is_named(scene: Scene) -> None:
    lines = scene.export("acme")
    missing = next(i for i, line in enumerate(lines) if b'"rel2"' in line)
    attested = next(i for i, line in enumerate(lines) if b'"decision":"att2"' in line)
    kept = [line for i, line in enumerate(lines) if i not in (missing, attested)]
    error = refuse(kept)
    assert (error.code, "number 3 is missing" in error.what) == ("audit-truncated", True)
    assert refuse([line for i, line in enumerate(lines) if i != attested]).code == "audit-truncated"
    error = refuse([line for i, line in enumerate(lines) if i != missing])
    assert error.code in ("audit-truncated", "audit-broken")


def test_an_entry_of_somebody_else_has_no_place_in_an_excerpt(scene: Scene) -> None:
    lines, others = scene.export("acme"), scene.export("umbrella")
    foreign = next(line for line in others if b'"path":"umbrella' in line)
    at = next(i for i, line in enumerate(lines) if b'"entry"' in line and json.loads(line)["entry"]["index"] > 3)
    assert "does not concern" in refuse([*lines[:at], foreign, *lines[at:]]).what


def test_lines_of_the_other_form_are_refused(scene: Scene) -> None:
    whole, part = scene.export(), scene.export("acme", [scene.kept])
    with_proof = next(line for line in part if b'"proof"' in line)
    without = next(line for line in whole if b'"entry"' in line)
    note, proven = CheckpointLine(scene.kept).encode(), next(line for line in part if b'"consistency"' in line)
    for lines, line in ((whole, with_proof), (part, without), (whole, proven), (part, note), (part, part[0]), (part, b"{}\n")):
        assert refuse([lines[0], line, *lines[1:]]).code == "malformed"
    assert refuse([*part, with_proof]).code == "malformed"
    assert isinstance(EntryLine(Entry.from_json(json.loads(without)["entry"])).encode(), bytes)
