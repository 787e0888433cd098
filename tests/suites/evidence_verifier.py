"""What every evidence verifier must do, ours and a third party's. A subclass gives a `subject` fixture.

class TestMine(EvidenceVerifierSuite):
    @pytest.fixture
    def subject(self): return Subject(...)
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.owner.kbs.evidence import CODES, EvidenceVerifier, VerifiedEvidence

REPORT_DATA = hashlib.sha384(b"nonce, key").digest()
OTHER = hashlib.sha384(b"another session's").digest()
JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 10**400, 1.5, "", "x", "\N{GRINNING FACE}", [], [1], {}, {"": None}, {"quote": None}, {"quote": 5},
    {"quote": ""}, {"quote": "!"}, {"quote": "AAAA"}, {"report_data": "AAAA"}, {"report_data": [], "svn": {}},
    {"report_data": "A" * 100_000, "svn": "1"}, {"evidence": {"a": {"b": [[[]]]}}},
)  # fmt: skip


@dataclass
class Subject:
    """A verifier, and an attester of its kind. `attest(report_data, init_data_digest)` makes evidence.

    `binds_init_data`: whether this kind of evidence can prove init-data. `forge` makes evidence that is well-formed and
    not genuine; None for kinds that prove nothing.
    """

    verifier: EvidenceVerifier
    attest: Callable[[bytes, bytes | None], Any]
    binds_init_data: bool
    forge: Callable[[bytes], Any] | None = None

    def verify(self, evidence: Any, *, report_data: bytes = REPORT_DATA, init_data_digest: bytes | None = None) -> VerifiedEvidence:
        # As the KBS has it: from JSON, and never the object that somebody else still holds.
        return self.verifier.verify(json.loads(json.dumps(evidence)), report_data=report_data, init_data_digest=init_data_digest)


class EvidenceVerifierSuite:
    def refused(self, subject: Subject, evidence: Any, **options: Any) -> PeerError:
        with pytest.raises(PeerError) as caught:
            subject.verify(evidence, **options)
        assert caught.value.code in CODES
        return caught.value

    def test_genuine_evidence(self, subject: Subject) -> None:
        verified = subject.verify(subject.attest(REPORT_DATA, None))
        assert verified.tee == subject.verifier.tee
        assert verified.tee_class.isalpha()
        assert verified.tee_class.islower()
        assert json.loads(json.dumps(dict(verified.claims), allow_nan=False)) == dict(verified.claims)

    def test_another_session_s_evidence(self, subject: Subject) -> None:
        evidence = subject.attest(REPORT_DATA, None)
        for other in (OTHER, bytes(48), REPORT_DATA[:47] + bytes([REPORT_DATA[47] ^ 1])):
            self.refused(subject, evidence, report_data=other)

    def test_init_data(self, subject: Subject) -> None:
        digest = hashlib.sha256(b"init-data").digest()
        if subject.binds_init_data:
            evidence = subject.attest(REPORT_DATA, digest)
            subject.verify(evidence, init_data_digest=digest)
            self.refused(subject, evidence, init_data_digest=hashlib.sha256(b"other").digest())
            self.refused(subject, evidence)  # left out, as a relay might
            self.refused(subject, subject.attest(REPORT_DATA, None), init_data_digest=digest)
            self.refused(subject, evidence, init_data_digest=hashlib.sha384(b"init-data").digest())

    def test_evidence_that_is_not_genuine(self, subject: Subject) -> None:
        if subject.forge is not None:
            self.refused(subject, subject.forge(REPORT_DATA))

    @pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:24])
    def test_junk(self, subject: Subject, junk: Any) -> None:
        self.refused(subject, junk)

    def test_members_that_are_missing_or_of_another_kind(self, subject: Subject) -> None:
        evidence = subject.attest(REPORT_DATA, None)
        assert isinstance(evidence, dict)
        for name in evidence:
            for value in (None, 5, [], {}, True):
                self.refused(subject, {**evidence, name: value})
            self.refused(subject, {other: value for other, value in evidence.items() if other != name})

    def test_cut_and_changed_text(self, subject: Subject) -> None:
        evidence = subject.attest(REPORT_DATA, None)
        for name, value in evidence.items():
            if isinstance(value, str) and len(value) > 8:
                for changed in (value[:-4], value[4:], value + "AAAA", value[: len(value) // 2], "-" + value[1:]):
                    self.refused(subject, {**evidence, name: changed})

    def test_many_threads(self, subject: Subject) -> None:
        evidence = [subject.attest(hashlib.sha384(bytes([number])).digest(), None) for number in range(8)]
        wrong: list[object] = []

        def work(number: int) -> None:
            for other in range(8):
                try:
                    subject.verify(evidence[number], report_data=hashlib.sha384(bytes([other])).digest())
                    verdict = True
                except PeerError:
                    verdict = False
                if verdict != (number == other):
                    wrong.append((number, other))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
