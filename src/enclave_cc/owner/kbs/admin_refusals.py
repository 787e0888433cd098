"""Why an administrator was refused, for the owner: what the token says of itself, and which setting it was held against."""

from __future__ import annotations

import json
from typing import Any

from enclave_cc.crypto import base64url
from enclave_cc.errors import PeerError, foreign
from enclave_cc.owner.kbs.http import HttpRequest
from enclave_cc.owner.policy.reasons import Reason

_SHOWN = ("iss", "sub", "aud", "role", "exp", "nbf")
_MAX_PATH = 256


def explain_admin(error: PeerError, request: HttpRequest) -> Reason:
    """The reason for `error` of the gate. The token itself is not in it: of its claims those that name who and when."""
    asked = f"{request.method} {request.path[:_MAX_PATH]}"
    claims = _read_claims(request.bearer)
    if error.code == "forbidden":
        return Reason(
            "admin-token.role",
            claims.get("role") if claims else error.what,
            f"a role that covers {asked}",
            "[admin.roles] in kbs.toml",
            nearest=claims or None,
            advice="name a role that may in owner.toml, or add the path or prefix to this one in [admin.roles] of kbs.toml",
            code=error.code,
        )
    return Reason(
        "admin-token",
        error.what,
        f"a token for {asked} that is signed by a key of [admin], of its issuer and audience, and valid now",
        "[admin] in kbs.toml",
        nearest=claims or None,
        advice="check admin_key in owner.toml against public_key in [admin] of kbs.toml, and both clocks",
        code=error.code,
    )


def _read_claims(token: str | None) -> dict[str, Any]:
    """Of a token that nobody verified: text to look at, cut and made printable."""
    try:
        parts = (token or "").split(".")
        claims = json.loads(base64url.decode(parts[1], "the token")) if len(parts) == 3 and len(parts[1]) < 16384 else {}
    except (PeerError, ValueError, RecursionError):
        return {}
    if not isinstance(claims, dict):
        return {}
    return {name: foreign(claims[name]) for name in _SHOWN if name in claims}
