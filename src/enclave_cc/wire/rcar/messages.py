"""The bodies of RCAR 0.4.0: Request, Challenge, Attestation, and the Error JSON.

Member names are the wire's (Trustee's `kbs-types`): hyphens at the top, underscores inside `tee-evidence`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from enclave_cc.crypto.jwk import PublicJwk
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.rcar import canonical

VERSION = "0.4.0"
PREFIX = "/kbs/v0"
COOKIE = "kbs-session-id"
NONCE_SIZE = 32
HASH_ALGORITHMS = ("sha256", "sha384", "sha512", "sm3")  # as guest-components offers them
ERROR_PREFIX = "https://github.com/confidential-containers/kbs/errors/"

_TEE = re.compile(r"[a-z0-9-]{1,32}\Z")


@record
class Request:
    """Opens a handshake: protocol version, kind of TEE, free parameters."""

    tee: str
    version: str = VERSION
    extra_params: object = ""

    def encode(self) -> bytes:
        return _dump({"version": self.version, "tee": self.tee, "extra-params": self.extra_params})

    @classmethod
    def parse(cls, body: bytes) -> Request:
        """Raises `PeerError`: "malformed", or "kbs-protocol" for a version other than 0.4.0."""
        value = canonical.parse_object(body, "the request")
        version = canonical.take_text(value, "version", "the request")
        if version != VERSION:
            raise PeerError("kbs-protocol", f"the peer speaks version {foreign(version)}, this is {VERSION}")
        tee = canonical.take_text(value, "tee", "the request")
        if _TEE.match(tee) is None:
            raise PeerError("malformed", "the request names no kind of TEE")
        if "extra-params" not in value:
            raise PeerError("malformed", "the request has no member 'extra-params'")
        return cls(tee, version, value["extra-params"])


@record
class Challenge:
    """The server's nonce, base64 text of 32 bytes, which goes into the report data as text."""

    nonce: str
    extra_params: object = ""

    def encode(self) -> bytes:
        return _dump({"nonce": self.nonce, "extra-params": self.extra_params})

    @classmethod
    def parse(cls, body: bytes) -> Challenge:
        """Raises `PeerError("malformed")`; also when the server selects another hash than SHA-384, which it does for
        IBM Secure Execution only."""
        value = canonical.parse_object(body, "the challenge")
        nonce = canonical.take_text(value, "nonce", "the challenge")
        if not 1 <= len(nonce) <= 512:
            raise PeerError("malformed", "the challenge's nonce is empty or too long")
        extra = value.get("extra-params", "")
        if isinstance(extra, dict) and extra.get("selected-hash-algorithm", "sha384") != "sha384":
            raise PeerError("kbs-protocol", "the server selects a hash other than SHA-384")
        return cls(nonce, extra)


@record
class InitDataBody:
    """Init-data as it travels: the exact text, because its digest is what the hardware reports."""

    body: str
    format: str = "toml"


@record
class Attestation:
    """Evidence with what it binds. `primary_evidence` is any JSON, its form is the TEE's own."""

    nonce: str
    tee_public_key: PublicJwk
    primary_evidence: object
    additional_evidence: str = ""
    init_data: InitDataBody | None = None

    def encode(self) -> bytes:
        value: dict[str, object] = {
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": dict(self.tee_public_key.members)},
            "tee-evidence": {"primary_evidence": self.primary_evidence, "additional_evidence": self.additional_evidence},
        }
        if self.init_data is not None:
            value["init-data"] = {"format": self.init_data.format, "body": self.init_data.body}
        return _dump(value)

    @classmethod
    def parse(cls, body: bytes, *, rsa1_5: bool = False) -> Attestation:
        """Raises `PeerError("malformed")`. Nothing in the result is verified. `rsa1_5`: see `PublicJwk`."""
        what = "the attestation"
        value = canonical.parse_object(body, what)
        runtime = canonical.take_object(value, "runtime-data", what)
        evidence = canonical.take_object(value, "tee-evidence", what)
        if "primary_evidence" not in evidence:
            raise PeerError("malformed", f"{what} has no member 'primary_evidence'")
        init_data = None
        if value.get("init-data") is not None:  # absent and null are one, as for upstream
            wrapped = canonical.take_object(value, "init-data", what)
            if wrapped.get("format") != "toml":
                raise PeerError("malformed", "init-data is not of format toml")
            init_data = InitDataBody(canonical.take_text(wrapped, "body", "init-data"))
        return cls(
            nonce=canonical.take_text(runtime, "nonce", what),
            tee_public_key=PublicJwk.parse(runtime.get("tee-pubkey"), rsa1_5=rsa1_5),
            primary_evidence=evidence["primary_evidence"],
            additional_evidence=canonical.take_text(evidence, "additional_evidence", what),
            init_data=init_data,
        )

    def parse_additional(self) -> dict[str, Any]:
        """The devices' evidence by kind of TEE; empty when there is none. Raises `PeerError("malformed")`."""
        if not self.additional_evidence:
            return {}
        return canonical.parse_object(self.additional_evidence.encode(), "the additional evidence")


@record
class Problem:
    """The Error JSON: upstream's `type` and `detail`; `code` and `id` are ours, which upstream's clients ignore.

    `code` is one of `errors.TABLE` and tells the attester about its own evidence only; `id` is what the data owner
    looks up.
    """

    variant: str
    detail: str
    code: str | None = None
    id: str | None = None

    def encode(self) -> bytes:
        value: dict[str, object] = {"type": ERROR_PREFIX + self.variant, "detail": self.detail}
        for name, member in (("code", self.code), ("id", self.id)):
            if member is not None:
                value[name] = member
        return _dump(value)

    @classmethod
    def parse(cls, body: bytes) -> Problem:
        """Raises `PeerError("malformed")`."""
        value = canonical.parse_object(body, "the error answer")
        kind = canonical.take_text(value, "type", "the error answer")
        code, ident = value.get("code"), value.get("id")
        return cls(
            variant=foreign(kind.rsplit("/", 1)[-1]),
            detail=foreign(canonical.take_text(value, "detail", "the error answer")),
            code=code if isinstance(code, str) else None,
            id=foreign(ident) if isinstance(ident, str) else None,
        )


def encode_token_answer(token: str) -> bytes:
    """The body that answers an accepted Attestation."""
    return _dump({"token": token})


def parse_token_answer(body: bytes) -> str:
    """The token of an accepted Attestation, not verified. Raises `PeerError("malformed")`."""
    return canonical.take_text(canonical.parse_object(body, "the attestation's answer"), "token", "the attestation's answer")


def encode_sgx_evidence(quote: bytes) -> dict[str, str]:
    """SGX evidence as guest-components' attester spells it."""
    return {"quote": base64.b64encode(quote).decode()}


def parse_sgx_evidence(evidence: object) -> bytes:
    """The quote's bytes. Raises `PeerError("malformed")`."""
    if not isinstance(evidence, Mapping):
        raise PeerError("malformed", "the SGX evidence is not an object")
    text = canonical.take_text(evidence, "quote", "the SGX evidence")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", "the quote is not base64") from error


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
