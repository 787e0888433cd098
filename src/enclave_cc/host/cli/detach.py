"""`run -d`: the supervisor lives on in a process of its own; the command returns when the workload runs, or cannot."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from enclave_cc.errors import TABLE, EnclaveCcError, PeerError, UsageError, foreign
from enclave_cc.host.sandbox.runc import wait_child

_MESSAGE_LIMIT = 1 << 16


def run_detached(supervise: Callable[[Callable[[str], None]], int], *, deadline: float) -> int:
    """Calls `supervise(on_running)` in a detached process; prints the id that it gives to `on_running`.

    Raises the coded error with which `supervise` failed before. Signals that would end this command end the start; it has
    `deadline` seconds for that.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_be_supervisor(supervise, writer))
    os.close(writer)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < _MESSAGE_LIMIT:
            part = os.read(reader, 4096)
            if not part:
                break
            answer += part
    except (KeyboardInterrupt, SystemExit):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        wait_child(child, time.monotonic() + deadline)  # the pod is gone when we are
        raise
    finally:
        os.close(reader)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return _report(answer)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _report(answer: bytes) -> int:
    try:
        told = json.loads(answer)
    except ValueError:
        raise UsageError("internal", "the pod's supervisor ended without a word") from None
    if "id" in told:
        print(told["id"])
        return 0
    if "exit_code" in told:
        return int(told["exit_code"])
    code = told["code"] if told.get("code") in TABLE else "internal"
    raise _Told(code, told["what"], told["fix"], int(told["exit"]))


class _Told(PeerError):
    """An error of the supervisor's process, with its own exit code."""

    def __init__(self, code: str, what: str, fix: str, exit_code: int) -> None:
        super().__init__(code, what, fix)
        self.exit_code = exit_code

    @property
    def exit(self) -> int:
        return self.exit_code


def _be_supervisor(supervise: Callable[[Callable[[str], None]], int], writer: int) -> int:
    os.setsid()
    told = False

    def tell(value: Mapping[str, object]) -> None:
        nonlocal told
        if not told:
            told = True
            with suppress(OSError):
                os.write(writer, json.dumps(dict(value)).encode() + b"\n")
            os.close(writer)

    def on_running(identifier: str) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        tell({"id": identifier})

    try:
        code = supervise(on_running)
    except EnclaveCcError as error:
        tell(dict(error.to_json()) | {"exit": error.exit})
        return error.exit
    except Exception as error:  # noqa: BLE001 - whoever waits for us is told of a bug too
        tell({"code": "internal", "what": f"{type(error).__name__}: {foreign(error)}", "fix": TABLE["internal"].fix, "exit": 70})
        return 70
    tell({"exit_code": code})
    return code
