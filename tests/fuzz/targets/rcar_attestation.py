"""RCAR's Attestation, with everything the KBS reads out of it before it verifies anything."""

from __future__ import annotations

from enclave_cc.crypto.jwk import TeeKey
from enclave_cc.errors import PeerError
from enclave_cc.wire.rcar import binding, initdata, messages

_INIT = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "a = 1"\n'
SEEDS = [
    messages.Attestation("bm9uY2U=", TeeKey.generate(kind).public, {"quote": "AAAA"}, extra, init).encode()
    for kind, extra, init in (("P-256", "", None), ("RSA", '{"nvidia":{}}', messages.InitDataBody(_INIT)))
]


def target(data: bytes) -> None:
    try:
        attestation = messages.Attestation.parse(data)
        binding.compute_report_data(attestation.nonce, attestation.tee_public_key, attestation.additional_evidence)
        attestation.parse_additional()
        if attestation.init_data is not None:
            initdata.InitData.parse(attestation.init_data.body).claims()
        messages.parse_sgx_evidence(attestation.primary_evidence)
    except PeerError:
        pass
