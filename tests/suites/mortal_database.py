"""A database whose user dies (SIGKILL) before a statement of a write, COMMIT included."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Mortal:
    """Dies before the so-manieth statement."""

    def __init__(self, database: Any, left: int) -> None:
        self._database = database
        self._left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @contextmanager
    def write(self, **arguments: Any) -> Iterator[Any]:
        with self._database.write(**arguments) as db:
            mortal = self

            class Connection:
                def execute(self, *words: Any) -> Any:
                    mortal.age()
                    return db.execute(*words)

            yield Connection()
            self.age()  # before COMMIT
        self.age()  # behind it, unacknowledged

    def age(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
