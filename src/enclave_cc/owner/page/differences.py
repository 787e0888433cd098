"""Two versions of a text as rows to show side by side in one column."""

from __future__ import annotations

import difflib

from enclave_cc.record import record

CONTEXT = 4


@record
class Line:
    """`kind`: "same", "added", "removed" or "gap"; `old` and `new` are line numbers, None where the side has none."""

    kind: str
    text: str
    old: int | None = None
    new: int | None = None


def compare(old: str, new: str, *, context: int | None = CONTEXT) -> list[Line]:
    """Lines of both texts in order. `context`: so many unchanged lines around a change, and a gap for others; None: all."""
    before, after = old.splitlines(), new.splitlines()
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    groups = [matcher.get_opcodes()] if context is None else list(matcher.get_grouped_opcodes(context))
    lines: list[Line] = []
    for group in groups:
        if context is not None and (group[0][1] or group[0][3]):
            lines.append(Line("gap", ""))
        for tag, old_begin, old_end, new_begin, new_end in group:
            if tag == "equal":
                lines += [
                    Line("same", before[old_begin + n], old_begin + n + 1, new_begin + n + 1) for n in range(old_end - old_begin)
                ]
                continue
            lines += [Line("removed", before[n], old=n + 1) for n in range(old_begin, old_end)]
            lines += [Line("added", after[n], new=n + 1) for n in range(new_begin, new_end)]
    return lines
