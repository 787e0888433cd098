"""SGX evidence: a DCAP quote, judged against the owner's roots and their collateral."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

from enclave_cc.errors import PeerError
from enclave_cc.owner.collateral.source import CollateralSource
from enclave_cc.owner.kbs.evidence import VerifiedEvidence
from enclave_cc.owner.kbs.roots import RootSource
from enclave_cc.owner.verifier import quote as quotes
from enclave_cc.owner.verifier.collateral import CollateralVerifier
from enclave_cc.wire.rcar import binding, messages


class SgxVerifier:
    """Verifies quotes with `owner.verifier`. Safe for many threads."""

    tee = "sgx"

    def __init__(self, roots: RootSource, collateral: CollateralSource, *, now: Callable[[], float] = time.time) -> None:
        self._roots = roots
        self._collateral = collateral
        self._now = now
        self._collaterals = CollateralVerifier()

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        """
        1. The evidence holds a quote whose root the owner trusts, and there is collateral for its platform.
        2. The quote verifies (`verifier.quote.verify_quote`).
        3. REPORTDATA is the session's: nonce, TEE key and additional evidence, padded with zeros.
        4. CONFIGID is the digest of the init-data that came along, padded; without init-data it is zero, so that an
           enclave which was configured shows what with.
        """
        # 1
        quote = messages.parse_sgx_evidence(evidence)
        origin = quotes.read_origin(quote)
        roots = self._roots.list_roots()
        named = next((root for root in roots if root.certificate == origin.root), None)
        if named is None:
            raise PeerError("untrusted-root", "the quote chains to a root that the owner has not named")
        at = int(self._now())
        found = self._collateral.find(origin, named, at)
        if found is None:
            raise PeerError(
                "collateral-refused",
                f"there is no collateral of root {named.name} for FMSPC {origin.fmspc.hex()} and the {origin.pck_ca} CA",
                "Add it with `enclave-cc kbs root add`, or name a service in [collateral] of kbs.toml.",
            )
        # 2
        claims = quotes.verify_quote(quote, found.collateral, roots=roots, at=at, collaterals=self._collaterals)
        # 3
        if not hmac.compare_digest(claims.body.report_data, binding.pad(report_data)):
            raise PeerError("quote-refused", "the quote binds another nonce, key or additional evidence than this session's")
        # 4
        if claims.body.config_id != binding.pad(init_data_digest or b""):
            raise PeerError("quote-refused", "CONFIGID is not the digest of the init-data that was sent")
        return VerifiedEvidence(
            tee="sgx",
            tee_class="cpu",
            claims=claims.to_upstream_json(),
            report_data=claims.body.report_data.hex(),
            init_data=claims.body.config_id.hex(),
        )
