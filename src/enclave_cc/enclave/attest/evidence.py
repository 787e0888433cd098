"""What this enclave shows a KBS: a quote that binds the session's nonce and key."""

from __future__ import annotations

from enclave_cc.crypto.jwk import PublicJwk
from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.wire.rcar import binding, messages

TEE = "sgx"


def make_attestation(platform: Platform, nonce: str, key: PublicJwk, init_data: str | None) -> messages.Attestation:
    """The Attestation that answers a challenge. Raises what the platform raises when it gives no quote."""
    report_data = binding.compute_report_data(nonce, key, "")
    return messages.Attestation(
        nonce=nonce,
        tee_public_key=key,
        primary_evidence=messages.encode_sgx_evidence(platform.quote(binding.pad(report_data))),
        init_data=None if init_data is None else messages.InitDataBody(init_data),
    )
