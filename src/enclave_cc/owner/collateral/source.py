"""One interface for all origins of collateral, and the order in which they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from enclave_cc.errors import PeerError
from enclave_cc.owner.verifier.collateral import find_window
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.record import record
from enclave_cc.wire.sgx.collateral import Collateral


@record
class Found:
    """Collateral, and the time (seconds since 1970, inclusive) in which its documents hold."""

    collateral: Collateral
    start: int
    end: int

    @classmethod
    def read(cls, collateral: Collateral) -> Found:
        """Raises `PeerError("malformed")`. Nothing is verified."""
        return cls(collateral, *find_window(collateral))


class CollateralSource(Protocol):
    """Finds collateral; never judges it. Safe for many threads."""

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        """The collateral of `origin`'s platform below `root`; what holds at `at` before what does not.

        `origin` is what a quote claims: a source that costs something to ask calls `origin.check_chain` first.
        Raises `PeerError("collateral-refused")` when the source cannot answer now.
        """
        ...


class Sources:
    """Several sources: the first that has collateral which holds now; else whatever one has, so that the refusal says
    which part of it has expired."""

    def __init__(self, sources: Sequence[CollateralSource]) -> None:
        self._sources = tuple(sources)

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        expired: Found | None = None
        failed: PeerError | None = None
        for source in self._sources:
            try:
                found = source.find(origin, root, at)
            except PeerError as error:
                failed = failed or error
                continue
            if found is not None and found.start <= at <= found.end:
                return found
            expired = expired or found
        if expired is None and failed is not None:
            raise failed
        return expired
