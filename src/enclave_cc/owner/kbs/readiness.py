"""Whether a balancer should send requests here (`/readyz`), as against whether the process lives (`/healthz`)."""

from __future__ import annotations

from enclave_cc.errors import EnclaveCcError
from enclave_cc.owner.kbs.http import HttpAnswer, json_answer
from enclave_cc.owner.kbs.routing import PUBLIC, Call, Route
from enclave_cc.owner.storage import migration
from enclave_cc.owner.storage.database import Database
from enclave_cc.record import replace


class Readiness:
    """Ready: not ending, the database answers, and it has every migration of this program."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.draining = False

    def routes(self) -> tuple[Route, ...]:
        return (Route("GET", "/readyz", self._answer, PUBLIC),)

    def find_obstacle(self) -> str | None:
        """A code: "draining", "wrong-state" for the schema, or the database's own; None when ready."""
        if self.draining:
            return "draining"
        try:
            missing = migration.list_missing(self._database)
        except EnclaveCcError as error:
            return error.code
        return "wrong-state" if missing else None

    def _answer(self, _: Call) -> HttpAnswer:
        obstacle = self.find_obstacle()
        answer = json_answer({"ready": True} if obstacle is None else {"ready": False, "code": obstacle})
        return answer if obstacle is None else replace(answer, status=503)
