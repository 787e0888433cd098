"""Whom to trust."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from enclave_cc.crypto.x509 import Certificate
from enclave_cc.errors import UsageError
from enclave_cc.owner.verifier import roots

if TYPE_CHECKING:
    from conftest import Simulated


def test_intel_s_root() -> None:
    root = roots.intel_root()
    certificate = Certificate.parse(root.certificate)
    assert certificate.common_name == "Intel SGX Root CA"
    # The key id that Trustee's example token shows, and the serial number (also the key identifier) that Intel chose.
    assert hashlib.sha384(b"\x04" + certificate.public_key).hexdigest().startswith("46e403bd34f05a3f2817ab9badcaacc7")
    assert f"{certificate.serial:x}" == "22650cd65a9d3489f383b49552bf501b392706ac"
    assert (root.name, root.simulated) == ("intel", False)


def test_a_named_root(simulated: Simulated) -> None:
    pem = simulated.platform.root_certificate_pem()
    for text in (pem, pem.encode(), "\n" + pem.replace("\n", "\r\n") + "\n"):
        root = roots.TrustedRoot.from_pem("lab", text, simulated=True)
        assert root.certificate == simulated.root.certificate
    assert not roots.is_intel(pem.encode())


def test_what_is_no_root(simulated: Simulated) -> None:
    platform = simulated.platform
    chain = platform.pck_chain_pem()
    for text in (b"", b"text", chain, platform.read("pck.crt"), platform.read("platform-ca.crt"), platform.read("root-ca.pem")):
        with pytest.raises(UsageError) as caught:
            roots.TrustedRoot.from_pem("lab", text, simulated=True)
        assert caught.value.code == "bad-config"
