"""Why: a tree of reasons for the data owner. Nothing in here reaches a client or the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enclave_cc.record import record


@record
class Reason:
    """One finding: which claim, what was expected, what came nearest, which rule, what to do; and what lies behind.

    `place` is where the rule stands: {"policy": id, "version": number, "line": number}. `advice` says what to do, and
    `command` is the command line that does it, where one does.
    """

    claim: str
    found: Any
    expected: Any
    rule: str
    nearest: Any = None
    advice: str = ""
    code: str | None = None  # the public code that this finding justifies, if any
    because: tuple[Reason, ...] = ()
    place: Mapping[str, Any] | None = None
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"claim": self.claim, "found": self.found, "expected": self.expected, "rule": self.rule}
        for name, member in (
            ("nearest", self.nearest),
            ("advice", self.advice),
            ("command", self.command),
            ("code", self.code),
            ("place", self.place),
        ):
            if member:
                value[name] = member
        if self.because:
            value["because"] = [reason.to_json() for reason in self.because]
        return value

    @property
    def codes(self) -> tuple[str, ...]:
        """The public codes in this tree, the deepest first."""
        inner = tuple(code for reason in self.because for code in reason.codes)
        return (*inner, self.code) if self.code is not None else inner
