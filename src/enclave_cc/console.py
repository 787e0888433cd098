"""What a person or a script sees: rows, values and errors.

Human output on a terminal is made with rich, plain text when piped, JSON with `--json`. Errors go to stderr as
`error CODE: what. fix.`, or as a JSON object in `--json` mode.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from enclave_cc.errors import EnclaveCcError


def print_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, as_json: bool) -> None:
    """A listing: one mapping per row. JSON keeps every member, a table shows `columns`, upper-cased as headings."""
    if as_json:
        print(json.dumps(list(rows), indent=2, sort_keys=True))
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    headings = [column.replace("_", " ").upper() for column in columns]
    if sys.stdout.isatty():
        from rich.console import Console  # 60 ms: only where a person looks
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for line in cells:
            table.add_row(*line)
        Console().print(table)
        return
    widths = [max(len(line[i]) for line in [headings, *cells]) for i in range(len(columns))]
    for line in [headings, *cells]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def print_value(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, sort_keys=True))


def print_error(error: EnclaveCcError, *, as_json: bool) -> None:
    """`error CODE: what. fix.` on stderr."""
    if as_json:
        print(json.dumps({"error": error.to_json()}, sort_keys=True), file=sys.stderr)
    else:
        print(f"error {error}", file=sys.stderr)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)
