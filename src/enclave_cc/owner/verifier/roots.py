"""The root certificates that evidence may chain to. Nothing is trusted that the owner did not name; Intel's is built in."""

from __future__ import annotations

import hashlib
from importlib import resources

from enclave_cc.errors import PeerError, UsageError
from enclave_cc.record import record
from enclave_cc.wire.sgx.certification import parse_pem_certificates

INTEL = "intel"
# SHA-256 of the DER of "Intel SGX Root CA", as Intel publishes the certificate
# (https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer)
INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


@record
class TrustedRoot:
    """A root certificate (DER), the owner's name for it, and whether the platforms below it are simulated."""

    name: str
    certificate: bytes
    simulated: bool

    @classmethod
    def from_pem(cls, name: str, pem: str | bytes, *, simulated: bool) -> TrustedRoot:
        """Raises `UsageError("bad-config")` unless `pem` is exactly one self-issued P-256 certificate authority."""
        from enclave_cc.crypto.x509 import Certificate  # 40 ms, only where roots are named

        text = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
        try:
            (der,) = _parse_pem(text)
            root = Certificate.parse(der)
            root.check_issued_by(root, root.not_before, code="malformed")
        except (PeerError, ValueError) as error:
            raise UsageError("bad-config", f"the root {name} is not one self-signed P-256 CA certificate in PEM") from error
        return cls(name, der, simulated)


def is_intel(pem: bytes) -> bool:
    """Whether a PEM text is Intel's root, so that nobody has to say that what stands below it is hardware."""
    try:
        return [hashlib.sha256(der).hexdigest() for der in _parse_pem(pem)] == [INTEL_ROOT_SHA256]
    except PeerError:
        return False


def _parse_pem(text: bytes) -> list[bytes]:
    return parse_pem_certificates(text.replace(b"\r\n", b"\n").strip() + b"\n")


def intel_root() -> TrustedRoot:
    """Intel's SGX root CA."""
    pem = resources.files(__package__).joinpath("intel_sgx_root.pem").read_bytes()
    (der,) = parse_pem_certificates(pem)
    if hashlib.sha256(der).hexdigest() != INTEL_ROOT_SHA256:
        raise UsageError("bad-config", "the installed Intel SGX root certificate is not Intel's", "Install enclave-cc again.")
    return TrustedRoot(INTEL, der, False)
