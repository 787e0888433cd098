"""The audit log cannot be written: nothing leaves the KBS, to nobody, and all goes on when it can be again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from enclave_cc.crypto import jwe
from enclave_cc.errors import EnclaveCcError

from .test_release import RawAttester

PATH, VALUE = "default/image-key/one", b"CANARY-of-the-resource"


@pytest.fixture
def own(tmp_path: Path, machine: Any, new_kbs: Callable[..., Any]) -> Iterator[Any]:
    kbs = new_kbs(tmp_path, machine)
    kbs.admin.set_resource(PATH, VALUE)
    yield kbs
    assert kbs.stop() == 0


@contextmanager
def unwritable_log(kbs: Any) -> Iterator[None]:
    with closing(sqlite3.connect(kbs.directory / "kbs.db", timeout=10, isolation_level=None)) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON audit_entry BEGIN SELECT RAISE(ABORT, 'no room'); END")
        try:
            yield
        finally:
            db.execute("DROP TRIGGER full")


def entries(kbs: Any) -> int:
    return int(json.loads(kbs.admin._request("GET", "admin/audit").body)["size"])


def test_nothing_leaves_without_an_entry(own: Any, enclave: Any) -> None:
    attested, answering, refused = (RawAttester(own, enclave) for _ in range(3))
    attested.auth()
    token = json.loads(attested.attest(attested.evidence()).body)["token"]
    before = entries(own)
    with unwritable_log(own):
        for headers in (None, {"Authorization": f"Bearer {token}"}):  # session and passport alike
            answer = attested.get(headers=headers)
            assert (answer.status, b"ciphertext" in answer.body) == (503, False)
        assert attested.get("default/image-key/absent").status == 503  # nor is a denial told
        answering.auth()
        answer = answering.attest(answering.evidence())
        assert (answer.status, b"token" in answer.body) == (503, False)
        assert answering.get().status == 401
        with pytest.raises(EnclaveCcError):
            own.admin.get_resource(PATH)
        refused.auth()
        assert refused.attest(refused.evidence(nonce="AAAA")).status == 401  # strangers are not in the log
    assert entries(own) == before
    assert jwe.decrypt(attested.get().body, attested.key).reveal() == VALUE
    assert answering.attest(answering.evidence()).status == 200  # its challenge was not used up
    assert jwe.decrypt(answering.get().body, answering.key).reveal() == VALUE
    assert own.admin.get_resource(PATH) == VALUE
    assert entries(own) > before
    assert own.cli("kbs", "audit", "verify", "--key", str(own.directory / "audit.pub")).returncode == 0
