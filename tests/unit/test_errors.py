from __future__ import annotations

import re
from pathlib import Path

import pytest

from enclave_cc import errors

SOURCE = Path(errors.__file__).parent


def test_every_code_is_raised_somewhere_and_every_raised_code_exists() -> None:
    text = "\n".join(p.read_text() for p in SOURCE.rglob("*.py") if p.name != "errors.py")
    unused = [code for code in errors.TABLE if f'"{code}"' not in text]
    assert unused == []
    raised = set(re.findall(r"(?:PeerError|UsageError|EnvironmentFault)\(\s*\"([a-z-]+)\"", text))
    assert raised <= set(errors.TABLE)


def test_exit_codes_stay_clear_of_those_of_shells_and_signals() -> None:
    assert all(2 <= row.exit < 125 for row in errors.TABLE.values())


def test_the_message_names_code_cause_and_fix() -> None:
    error = errors.PeerError("seal-broken", "block 7 does not authenticate")
    assert str(error) == f"seal-broken: block 7 does not authenticate. {errors.TABLE['seal-broken'].fix}"
    assert error.exit == errors.TABLE["seal-broken"].exit


def test_an_unknown_code_and_the_bare_base_class_are_our_bugs() -> None:
    with pytest.raises(KeyError):
        errors.PeerError("no-such-code", "x")
    with pytest.raises(TypeError):
        errors.EnclaveCcError("usage", "x")


def test_foreign_text_is_one_printable_line_of_bounded_length() -> None:
    shown = errors.foreign(b"a\nb\x1b[31m" + b"x" * 10_000)
    assert "\n" not in shown and "\x1b" not in shown
    assert len(shown) == errors.FOREIGN_TEXT_LIMIT + 1
