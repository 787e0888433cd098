"""What a back-end without versions of its own offers: named heads and numbered values, for `VersionedStore`.

Names are resource paths, `repository/type/tag`; data are bytes that the back-end does not look into.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class ObjectStore(Protocol):
    """Each call is atomic, and durable when it returns. Every method raises `EnvironmentFault`, see `ResourceStore`."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Keeps other writers of `name` out: those of this process, and of others as far as the back-end can."""
        ...

    def read_head(self, name: str) -> bytes | None: ...

    def write_head(self, name: str, data: bytes) -> None: ...

    def read_value(self, name: str, version: int) -> bytes | None: ...

    def write_value(self, name: str, version: int, data: bytes) -> None:
        """Puts the value there, or in place of the present one."""
        ...

    def remove_value(self, name: str, version: int) -> None:
        """Nothing happens if it is not there."""
        ...

    def list_names(self, prefix: str, after: str) -> Iterator[str]:
        """Names with a head that begin with `prefix` and come behind `after`, sorted."""
        ...
