"""Requests and answers of the control socket (docs/formats/control.md). Requests are host-authored: hostile input."""

from __future__ import annotations

import re
from collections.abc import Callable

from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.control import frame
from enclave_cc.wire.control.status import Status, StatusError

VERSION = 1
ITEM_LIMIT = 4096  # arguments or environment entries
STDIO_COUNT = 3

_EXEC_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@record
class StateRequest:
    """Asks for the status."""


@record
class TerminalRequest:
    """Asks for the master of the workload's terminal, sized `rows` by `columns` characters (0: leave as is)."""

    rows: int = 0
    columns: int = 0


@record
class ExecRequest:
    """Asks for one more process beside the workload. `None` takes the launch statement's value."""

    id: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    rows: int = 0
    columns: int = 0


@record
class SignalRequest:
    """Sends signal number `signal` to the exec `target`, or to the workload."""

    signal: int
    target: str | None = None


@record
class StopRequest:
    """Sends the workload the stop signal that its image names (SIGTERM if none), which the host cannot know."""


@record
class ResizeRequest:
    """Sizes the terminal of the exec `target`, or of the workload."""

    rows: int
    columns: int
    target: str | None = None


Request = StateRequest | TerminalRequest | ExecRequest | SignalRequest | StopRequest | ResizeRequest


@record
class Done:
    """The request was carried out."""


@record
class StateReply:
    """Boot init's status."""

    status: Status


@record
class Started:
    """The exec runs; `pid` is in boot init's PID namespace."""

    pid: int


@record
class Exited:
    """The exec ended; 128 + signal when one ended it."""

    exit_code: int


@record
class Refused:
    """The request was not carried out."""

    error: StatusError
    exit_code: int


Reply = Done | StateReply | Started | Exited | Refused


def encode_request(request: Request) -> bytes:
    """One frame."""
    return frame.encode_frame({"version": VERSION, **_request_members(request)})


def parse_request(body: frame.Json) -> Request:
    """Raises `PeerError` for a request that is not exactly one of docs/formats/control.md."""
    members = dict(body)
    if members.pop("version", None) != VERSION:
        raise PeerError("malformed", f"the control request is not of version {VERSION}")
    op = members.pop("op", None)
    parser = _REQUESTS.get(op) if isinstance(op, str) else None
    if parser is None:
        raise PeerError("malformed", "the control request has no known op")
    request = parser(members)
    _refuse_rest(members)
    return request


def encode_reply(reply: Reply) -> bytes:
    """One frame."""
    return frame.encode_frame({"version": VERSION, **_reply_members(reply)})


def parse_reply(body: frame.Json) -> Reply:
    """Raises `PeerError` for an answer that is not exactly one of docs/formats/control.md."""
    members = dict(body)
    if members.pop("version", None) != VERSION:
        raise PeerError("malformed", f"the control reply is not of version {VERSION}")
    kind = members.pop("reply", None)
    reply: Reply
    match kind:
        case "done":
            reply = Done()
        case "state":
            status = members.pop("status", None)
            if not isinstance(status, dict):
                raise PeerError("malformed", "the state reply has no status")
            reply = StateReply(Status.from_json(status))
        case "started":
            reply = Started(_integer(members, "pid", 1, 1 << 31))
        case "exited":
            reply = Exited(_integer(members, "exit_code", 0, 255))
        case "error":
            error = StatusError(_text(members, "code"), _text(members, "what"), _text(members, "fix"))
            reply = Refused(error, _integer(members, "exit_code", 0, 255))
        case _:
            raise PeerError("malformed", "the control reply is of no known kind")
    _refuse_rest(members)
    return reply


def _request_members(request: Request) -> frame.Json:
    match request:
        case StateRequest():
            return {"op": "state"}
        case TerminalRequest(rows, columns):
            return {"op": "terminal", "rows": rows, "columns": columns}
        case ExecRequest():
            return {
                "op": "exec",
                "id": request.id,
                "args": list(request.args),
                "env": list(request.env),
                "cwd": request.cwd,
                "user": request.user,
                "terminal": request.terminal,
                "rows": request.rows,
                "columns": request.columns,
            }
        case SignalRequest(signal, target):
            return {"op": "signal", "signal": signal, "target": target}
        case StopRequest():
            return {"op": "stop"}
        case ResizeRequest(rows, columns, target):
            return {"op": "resize", "rows": rows, "columns": columns, "target": target}


def _reply_members(reply: Reply) -> frame.Json:
    match reply:
        case Done():
            return {"reply": "done"}
        case StateReply(status):
            return {"reply": "state", "status": status.to_json()}
        case Started(pid):
            return {"reply": "started", "pid": pid}
        case Exited(exit_code):
            return {"reply": "exited", "exit_code": exit_code}
        case Refused(error, exit_code):
            return {"reply": "error", "exit_code": exit_code, **error.to_json()}


def _parse_state(members: frame.Json) -> Request:
    return StateRequest()


def _parse_terminal(members: frame.Json) -> Request:
    return TerminalRequest(*_size(members))


def _parse_exec(members: frame.Json) -> Request:
    identifier = _text(members, "id")
    if not _EXEC_ID.fullmatch(identifier):
        raise PeerError("malformed", "the exec id is not 1 to 64 of A-Z a-z 0-9 . _ -")
    args, env = _texts(members, "args"), _texts(members, "env")
    if not args or not args[0]:
        raise PeerError("malformed", "the exec request names no command")
    if any("=" not in entry or entry.startswith("=") for entry in env):
        raise PeerError("malformed", "an environment entry is not NAME=VALUE")
    cwd, user = _optional_text(members, "cwd"), _optional_text(members, "user")
    if cwd is not None and not cwd.startswith("/"):
        raise PeerError("malformed", "the working directory is not absolute")
    terminal = members.pop("terminal", False)
    if not isinstance(terminal, bool):
        raise PeerError("malformed", "terminal is not a boolean")
    return ExecRequest(identifier, args, env, cwd, user, terminal, *_size(members))


def _parse_signal(members: frame.Json) -> Request:
    return SignalRequest(_integer(members, "signal", 1, 64), _target(members))


def _parse_stop(members: frame.Json) -> Request:
    return StopRequest()


def _parse_resize(members: frame.Json) -> Request:
    rows, columns = _size(members)
    return ResizeRequest(rows, columns, _target(members))


_REQUESTS: dict[str, Callable[[frame.Json], Request]] = {
    "state": _parse_state,
    "terminal": _parse_terminal,
    "exec": _parse_exec,
    "signal": _parse_signal,
    "stop": _parse_stop,
    "resize": _parse_resize,
}


def _refuse_rest(members: frame.Json) -> None:
    if members:
        raise PeerError("malformed", "the control message has members that it must not have")


def _size(members: frame.Json) -> tuple[int, int]:
    members.setdefault("rows", 0)
    members.setdefault("columns", 0)
    return _integer(members, "rows", 0, 65535), _integer(members, "columns", 0, 65535)


def _target(members: frame.Json) -> str | None:
    target = _optional_text(members, "target")
    if target is not None and not _EXEC_ID.fullmatch(target):
        raise PeerError("malformed", "the target is not an exec id")
    return target


def _integer(members: frame.Json, name: str, lowest: int, highest: int) -> int:
    value = members.pop(name, None)
    if type(value) is not int or not lowest <= value <= highest:
        raise PeerError("malformed", f"{name} is not an integer from {lowest} to {highest}")
    return value


def _text(members: frame.Json, name: str) -> str:
    value = members.pop(name, None)
    if not _is_text(value):
        raise PeerError("malformed", f"{name} is not a string that the kernel takes")
    return str(value)


def _optional_text(members: frame.Json, name: str) -> str | None:
    if members.get(name) is None:
        members.pop(name, None)
        return None
    return _text(members, name)


def _texts(members: frame.Json, name: str) -> tuple[str, ...]:
    value = members.pop(name, [])
    if not isinstance(value, list) or len(value) > ITEM_LIMIT or not all(map(_is_text, value)):
        raise PeerError("malformed", f"{name} is not a list of at most {ITEM_LIMIT} strings")
    return tuple(value)


def _is_text(value: object) -> bool:
    # Lone surrogates cannot be encoded and NUL ends a C string: neither reaches execve as it was sent.
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
