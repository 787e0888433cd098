"""Administrators' paths: replay of recorded evidence, and its export. Nothing here changes anything."""

from __future__ import annotations

import base64
import time

from enclave_cc.errors import PeerError
from enclave_cc.owner.collateral.stored import StoredCollateral
from enclave_cc.owner.kbs.http import HttpAnswer, items_answer, json_answer
from enclave_cc.owner.kbs.policies import PolicyStore
from enclave_cc.owner.kbs.recordings import Recorder
from enclave_cc.owner.kbs.replay import Replay
from enclave_cc.owner.kbs.replay_rules import WHAT, Present, make_rules, take_number
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.routing import Call, Route
from enclave_cc.owner.reference.store import ReferenceStore
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical, messages

_ADMIN = f"{messages.PREFIX}/admin"
MAX_PAGE = 1000
_PAGE = 200


@record
class ReplayPaths:
    recorder: Recorder
    policies: PolicyStore
    references: ReferenceStore
    roots: RootStore

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", f"{_ADMIN}/replay", self._replay),
            Route("GET", f"{_ADMIN}/recordings", self._list),
            Route("GET", f"{_ADMIN}/replay-rules", self._export_rules),
        )

    def _replay(self, call: Call) -> HttpAnswer:
        """A request of `replay_rules` with `since`, `after` and `limit`, to {"changes", "judged", "skipped", "next"}; `next`
        is the `after` of the following page, null when there is none."""
        body = canonical.parse_object(call.body, WHAT)
        after, limit = take_number(body, "after") or 0, take_number(body, "limit")
        limit = _PAGE if limit is None else limit
        if not 1 <= limit <= MAX_PAGE:
            raise PeerError("malformed", f"limit is 1 to {MAX_PAGE}")
        present = Present(self.policies.snapshot(), self.references.list(), self.roots, StoredCollateral(self.roots))
        rules = make_rules(body, present, time.time())
        recordings = self.recorder.list(after=after, since=take_number(body, "since"), limit=limit)
        replay = Replay(*rules, self.recorder.find_attestation)
        replay.run(recordings)
        return json_answer(
            {
                "changes": [change.to_json() for change in replay.changes.values()],
                "judged": replay.judged,
                "skipped": replay.skipped,
                "next": recordings[-1].number if len(recordings) == limit else None,
            }
        )

    def _list(self, call: Call) -> HttpAnswer:
        query = call.request.query
        numbers = {name: query.get(name, default) for name, default in (("after", "0"), ("limit", "200"), ("since", "0"))}
        if not all(text.isdecimal() and len(text) < 16 for text in numbers.values()):
            raise PeerError("malformed", "after, limit and since are numbers")
        after, limit, since = (int(numbers[name]) for name in ("after", "limit", "since"))
        if not 1 <= limit <= MAX_PAGE:
            raise PeerError("malformed", f"limit is 1 to {MAX_PAGE}")
        return items_answer([each.to_json() for each in self.recorder.list(after=after, since=since, limit=limit)])

    def _export_rules(self, _: Call) -> HttpAnswer:
        """What a replay elsewhere needs: active policies, reference values, roots and their collateral."""
        return json_answer(
            {
                "at": int(time.time()),
                "policies": [
                    {"id": policy.id, "version": policy.version, "text": policy.text}
                    for policy in self.policies.snapshot().values()
                ],
                "reference_values": [value.to_json() for value in self.references.list()],
                "roots": [
                    {
                        "name": root.name,
                        "certificate": base64.b64encode(root.certificate).decode(),
                        "simulated": root.simulated,
                    }
                    for root in self.roots.list_roots()
                ],
                "collateral": [
                    {"root": each.root, "fmspc": each.fmspc, "ca": each.ca, "document": each.document}
                    for each in self.roots.list_collateral()
                ],
            }
        )
