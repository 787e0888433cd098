"""The KBS's side of TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from enclave_cc.errors import UsageError


def make_tls_context(certificate: str, key: str, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with one certificate and key (paths).

    With `client_ca`, a client is asked for a certificate, which must be by one of these authorities if it shows one.
    Attesters have none, so that nobody must; admin paths do. Raises `UsageError("bad-config")`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # an attester comes once; and a ticket is of one process, the next connection of any
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except OSError as error:  # SSLError is one
        raise UsageError("bad-config", f"{client_ca or certificate}: not a PEM certificate that TLS can use") from error
    return context
