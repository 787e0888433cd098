"""Points the RCAR conformance suite at a KBS by URL:

    python tests/suites/rcar_driver.py https://kbs:8080 --certificate kbs.crt --admin-key admin.key [--upstream]

The KBS must accept `sample` evidence, and its administrators' key must be at hand: the suite writes resources under
`conformance/` and replaces the release policy. `--upstream`: the statuses that Trustee's code sends, not its documents'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rcar_conformance import DOCUMENTED, UPSTREAM, RcarConformance, Target, sample_evidence


def make_target(arguments: argparse.Namespace) -> Target:
    key: Any = load_pem_private_key(Path(arguments.admin_key).read_bytes(), None)
    algorithm = {"Ed25519PrivateKey": "EdDSA", "RSAPrivateKey": "RS256"}.get(type(key).__name__, "ES256")

    def sign(key: Any, algorithm: str, claims: dict[str, Any]) -> str:
        full = {"iss": arguments.issuer, "sub": "admin", "aud": ["KBS"], "role": arguments.role, "exp": int(time.time()) + 300}
        return jwt.encode({name: value for name, value in (full | claims).items() if value is not None}, key, algorithm=algorithm)

    return Target(
        url=arguments.url,
        attest=sample_evidence,
        admin_token=lambda **claims: sign(key, algorithm, claims),
        stranger_token=lambda **claims: sign(Ed25519PrivateKey.generate(), "EdDSA", claims),
        certificate=Path(arguments.certificate).read_text() if arguments.certificate else None,
        statuses=UPSTREAM if arguments.upstream else DOCUMENTED,
        admits_rsa1_5=arguments.upstream,
        lifetime=arguments.lifetime,
        devices=not arguments.no_devices,
    )


_OPTIONS = "ENCLAVE_CC_RCAR_TARGET"


class TestByUrl(RcarConformance):
    """Collected when pytest is pointed at this file, which `main` does."""

    @pytest.fixture
    def target(self) -> Target:
        return make_target(parse_arguments(json.loads(os.environ[_OPTIONS]))[0])


def parse_arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--certificate", help="PEM of the server or its authority")
    parser.add_argument("--admin-key", required=True, help="PEM: Ed25519, P-256 or RSA")
    parser.add_argument("--issuer", default="enclave-cc", help="`iss` of admin tokens")
    parser.add_argument("--role", default="admin")
    parser.add_argument("--lifetime", type=int, default=300, help="seconds that a session lives")
    parser.add_argument("--upstream", action="store_true", help="expect Trustee's statuses")
    parser.add_argument("--no-devices", action="store_true", help="the KBS does not accept sampledevice")
    return parser.parse_known_args(words)


def main() -> int:
    words = sys.argv[1:]
    _, rest = parse_arguments(words)  # what is left is pytest's
    os.environ[_OPTIONS] = json.dumps(words)
    root = Path(__file__).resolve().parents[2]
    return int(pytest.main([str(Path(__file__).resolve()), "-c", str(root / "pyproject.toml"), "-q", *rest]))


if __name__ == "__main__":
    sys.exit(main())
