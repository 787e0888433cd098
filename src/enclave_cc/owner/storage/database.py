"""What the KBS's stores need of a database; `tests/suites/database.py` says what both kinds must hold to.

SQL is written once, in what SQLite 3.40 and PostgreSQL 15 both take:

- Parameters are `?`. Text, bytes, integers of 64 bits and None go in and come out; a truth value is stored as 0 or 1.
- `INSERT ... ON CONFLICT ... DO UPDATE`, `RETURNING`, `CAST(? AS TEXT) IS NULL` where a parameter's type shows nowhere
  else; no `INSERT OR ...`, no columns outside `GROUP BY`.
- Text sorts by code point.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeVar

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.record import record

T = TypeVar("T")
Dialect = Literal["sqlite", "postgresql"]
_ATTEMPTS = 8


class Conflict(EnvironmentFault):
    """A transaction that the database ended in favour of another; nothing of it is stored, and it may be tried again."""

    def __init__(self) -> None:
        super().__init__("deadline", "the KBS database is too busy with conflicting changes", "Try again.")


class Result(Protocol):
    """Rows of one statement, as tuples. `rowcount`: how many it changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


@record
class Done:
    """What one statement gave."""

    rows: list[Any]
    rowcount: int


class Connection(Protocol):
    """What a `read` or `write` block runs statements on; it is of no use after the block."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> Result:
        """Raises `UsageError("usage")` for a parameter that no column can hold, `EnvironmentFault` for all else."""
        ...


class Database(Protocol):
    """Safe for many threads, and for many processes on one database."""

    @property
    def dialect(self) -> Dialect: ...

    def read(self) -> AbstractContextManager[Connection]:
        """Each statement sees a consistent state; two statements may see two states."""
        ...

    def write(self, *, durable: bool = True, lock: str = "") -> AbstractContextManager[Connection]:
        """One transaction: everything in the block or nothing.

        `durable`: on disk when the block ends; without it a power cut, or a crash of PostgreSQL, may lose it.
        `lock`: of transactions with the same word, one runs at a time, in all processes. A transaction that reads
        before it writes names one. (SQLite runs one writer at a time anyway.)

        Raises `EnvironmentFault`: "deadline", "disk-full", "database-unreachable" or "environment"; `Conflict`.
        """
        ...

    def run(self, sql: str, parameters: Sequence[object] = (), *, durable: bool = True) -> Done:
        """One statement as a transaction of its own: on PostgreSQL one round trip instead of three."""
        ...

    def has_table(self, name: str) -> bool: ...

    def close(self) -> None:
        """Ends every connection."""
        ...


def transact(database: Database, work: Callable[[Connection], T], *, durable: bool = True, lock: str = "") -> T:
    """`work` in a transaction, again from its beginning when the database ends it for a deadlock or for another's sake.

    `work` must do nothing but use its connection. Raises as `Database.write` does."""
    for attempt in range(_ATTEMPTS):
        try:
            with database.write(durable=durable, lock=lock) as db:
                return work(db)
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311 (spreads rivals, guards nothing)
    raise AssertionError


def check_parameters(parameters: Sequence[object]) -> None:
    """Refuses what one of the two databases cannot hold, so that neither takes it. Raises `UsageError("usage")`."""
    for parameter in parameters:
        if type(parameter) is str:
            if "\0" in parameter or not (parameter.isascii() or _is_unicode(parameter)):
                raise UsageError("usage", "a text holds a NUL, or half of a surrogate pair, and cannot be stored")
        elif type(parameter) is int and not -(1 << 63) <= parameter < 1 << 63:
            raise UsageError("usage", "a number has more than 64 bits and cannot be stored")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
