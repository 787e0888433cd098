"""The status file that boot init keeps for the supervisor (docs/formats/control.md, Status file)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum

from enclave_cc.errors import TABLE, PeerError
from enclave_cc.record import field, record
from enclave_cc.wire.control import frame

VERSION = 1
TEXT_LIMIT = 4096
STAGE_LIMIT = 32


class State(StrEnum):
    """Where boot init is. `EXITED` and `ERROR` are final."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    ERROR = "error"


@record
class StatusError:
    """Why boot init ended: a code of `errors.TABLE` and its two sentences."""

    code: str
    what: str
    fix: str

    def __post_init__(self) -> None:
        if self.code not in TABLE:
            raise PeerError("malformed", "the status names an unknown error code")

    def to_json(self) -> frame.Json:
        return {"code": self.code, "what": self.what, "fix": self.fix}


@record
class Status:
    """One state of boot init. `stages` are milliseconds since its start; `exit_code` is set in final states only."""

    container_id: str
    state: State
    exit_code: int | None = None
    error: StatusError | None = None
    stages: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        final = self.state in (State.EXITED, State.ERROR)
        if final != (self.exit_code is not None) or (self.state is State.ERROR) != (self.error is not None):
            raise PeerError("malformed", "the status' members do not fit its state")
        if self.exit_code is not None and not 0 <= self.exit_code <= 255:
            raise PeerError("malformed", "the status' exit code is not one")

    def to_json(self) -> frame.Json:
        return {
            "version": VERSION,
            "container_id": self.container_id,
            "state": self.state.value,
            "exit_code": self.exit_code,
            "error": self.error.to_json() if self.error else None,
            "stages": dict(self.stages),
        }

    def encode(self) -> bytes:
        """The file's bytes."""
        return json.dumps(self.to_json(), separators=(",", ":"), sort_keys=True).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Status:
        """Raises `PeerError` and nothing else."""
        if len(data) > frame.BODY_LIMIT:
            raise PeerError("too-large", "the status file is larger than a control message may be")
        return cls.from_json(frame.parse_body(data))

    @classmethod
    def from_json(cls, value: frame.Json) -> Status:
        """Raises `PeerError` for members that are missing, unknown or of another type."""
        if set(value) != {"version", "container_id", "state", "exit_code", "error", "stages"} or value["version"] != VERSION:
            raise PeerError("malformed", f"the status is not of version {VERSION}")
        identifier, state, exit_code, stages = value["container_id"], value["state"], value["exit_code"], value["stages"]
        if not isinstance(identifier, str) or not isinstance(state, str) or state not in State._value2member_map_:
            raise PeerError("malformed", "the status has no container id or no known state")
        if exit_code is not None and (not isinstance(exit_code, int) or isinstance(exit_code, bool)):
            raise PeerError("malformed", "the status' exit code is not an integer")
        if (
            not isinstance(stages, dict)
            or len(stages) > STAGE_LIMIT
            or any(type(ms) is not int or ms < 0 for ms in stages.values())
        ):
            raise PeerError("malformed", "the status' stages are not milliseconds")
        return cls(identifier, State(state), exit_code, _parse_error(value["error"]), stages)


def _parse_error(value: object) -> StatusError | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"code", "what", "fix"}:
        raise PeerError("malformed", "the status' error is not one")
    code, what, fix = value["code"], value["what"], value["fix"]
    if not (isinstance(code, str) and isinstance(what, str) and isinstance(fix, str)):
        raise PeerError("malformed", "the status' error is not one")
    return StatusError(code, what[:TEXT_LIMIT], fix[:TEXT_LIMIT])
