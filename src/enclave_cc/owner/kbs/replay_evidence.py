"""Verifies recorded evidence at another time, or by other collateral: a TCB recovery before it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from enclave_cc.owner.collateral.source import CollateralSource, Found, Sources
from enclave_cc.owner.kbs.evidence import EvidenceVerifier
from enclave_cc.owner.kbs.roots import RootSource
from enclave_cc.owner.kbs.sgx_evidence import SgxVerifier
from enclave_cc.owner.verifier.collateral import name_platform
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.wire.sgx.collateral import Collateral


class GivenCollateral:
    """A `CollateralSource` of documents in memory."""

    def __init__(self, documents: Sequence[Collateral]) -> None:
        """Raises `PeerError`: "malformed" or "collateral-refused"."""
        self._found = {name_platform(document): Found.read(document) for document in documents}

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        del at
        return self._found.get((root.certificate, origin.fmspc, origin.pck_ca))


class _FirstOf:
    """What was given, whether it holds at the time or not, before what is stored: the owner asks about it."""

    def __init__(self, given: CollateralSource, stored: CollateralSource) -> None:
        self._given = given
        self._stored = Sources([stored])

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        return self._given.find(origin, root, at) or self._stored.find(origin, root, at)


def make_reverifiers(
    roots: RootSource, stored: CollateralSource, given: Sequence[Collateral], at: float
) -> Mapping[str, EvidenceVerifier]:
    """Verifiers whose clock stands at `at` (Unix seconds); of kinds of evidence that time says nothing about, none.

    Raises `PeerError` for collateral that cannot be read."""
    return {"sgx": SgxVerifier(roots, _FirstOf(GivenCollateral(given), stored), now=lambda: at)}
