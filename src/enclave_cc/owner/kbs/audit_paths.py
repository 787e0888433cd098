"""Administrators' paths: the audit log. Exports are put together, and verified, by their reader.

A role that may read `/kbs/v0/admin/audit/resources/PREFIX(/.*)?`, `.../audit/checkpoint` and `.../audit/consistency` sees
what concerns these resources, and nothing of other owners' entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from enclave_cc.errors import PeerError
from enclave_cc.owner.audit.export import DatabaseSource
from enclave_cc.owner.audit.log import AuditLog
from enclave_cc.owner.kbs.http import TEXT, HttpAnswer, json_answer
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.record import record
from enclave_cc.wire.audit.entry import is_subject
from enclave_cc.wire.audit.export import Line, encode_hashes
from enclave_cc.wire.rcar import messages
from enclave_cc.wire.tlog.checkpoint import Checkpoint, parse_number
from enclave_cc.wire.tlog.note import Note

PATH = f"{messages.PREFIX}/admin/audit"
LINES = "application/x-ndjson"


@record
class AuditPaths:
    log: AuditLog
    source: DatabaseSource

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", PATH, self._tell),
            Route("GET", f"{PATH}/checkpoint", self._sign),
            Route("GET", f"{PATH}/consistency", self._prove_consistency),
            Route("GET", f"{PATH}/log", self._read_log),
            Route("GET", f"{PATH}/entries/{{index}}", self._read_entry),
            Route("GET", f"{PATH}/resources", self._read_excerpt),
            Route("GET", f"{PATH}/resources/{{prefix*}}", self._read_excerpt),
        )

    def _tell(self, _: Call) -> HttpAnswer:
        """The log's state: whose it is, how large, its root, the keys that verify it."""
        checkpoint = Checkpoint.parse(Note.parse(self.log.checkpoint()).text)
        keys = [str(key) for key in self.log.keys]
        return json_answer({"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex(), "keys": keys})

    def _sign(self, _: Call) -> HttpAnswer:
        return HttpAnswer(body=self.log.checkpoint(), content_type=TEXT)

    def _prove_consistency(self, call: Call) -> HttpAnswer:
        old, new = _take(call, "old"), self._take_size(call, "new")
        return json_answer({"hashes": encode_hashes(self.source.prove_consistency(old, new))})

    def _read_log(self, call: Call) -> HttpAnswer:
        return _lines_answer(self.source.read_log(self._take_size(call), _take(call, "begin")))

    def _read_entry(self, call: Call) -> HttpAnswer:
        index = parse_number(call.parameters["index"], "the index")
        return _lines_answer([self.source.read_entry(index, self._take_size(call))])

    def _read_excerpt(self, call: Call) -> HttpAnswer:
        prefix = call.parameters.get("prefix", "")
        if not is_subject(prefix):
            raise PeerError("malformed", "the prefix is not the beginning of a resource path")
        # An index before the first cannot be written: the query counts from the next one.
        return _lines_answer(self.source.read_excerpt(prefix, self._take_size(call), _take(call, "begin") - 1))

    def _take_size(self, call: Call, name: str = "size") -> int:
        """A size that the log has had: proofs in larger trees cannot be made."""
        size = _take(call, name)
        if size > self.log.size():
            raise PeerError("malformed", f"the log has fewer than {size} entries")
        return size


def _take(call: Call, name: str) -> int:
    return parse_number(call.request.query.get(name, ""), f"the query's {name}")


def _lines_answer(lines: Sequence[Line]) -> HttpAnswer:
    return HttpAnswer(body=b"".join(line.encode() for line in lines), content_type=LINES)
