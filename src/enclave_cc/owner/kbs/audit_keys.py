"""The key that signs the audit log's checkpoints, in the KBS directory.

    audit.key  Ed25519, PKCS#8; the current key
    audit.pub  verifier keys (C2SP vkey), one a line: former ones first, the current one last; auditors keep a copy

All are of one name, the log's origin, made with the first.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from enclave_cc.crypto import ed25519
from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.replacement import replace_file
from enclave_cc.record import record
from enclave_cc.wire.tlog.note import NoteSigner, VerifierKey

KEY, PUBLIC = "audit.key", "audit.pub"
MAX_KEYS = 1000
_FIX = "Make one with `enclave-cc kbs audit new-key`."


@record
class AuditKeys:
    """What signs now, and every key that ever did, the current one last."""

    signer: NoteSigner
    verifiers: tuple[VerifierKey, ...]


def read(directory: Path) -> AuditKeys:
    """Raises `UsageError`: "not-found" for a directory from before there was an audit log, "bad-config";
    `EnvironmentFault("environment")`."""
    pem = Secret(_read(directory / KEY))
    verifiers = parse_public(_read(directory / PUBLIC), str(directory / PUBLIC))
    signer = NoteSigner(verifiers[-1].name, ed25519.SigningKey.from_pem(pem))
    if signer.verifier not in verifiers:
        raise UsageError(
            "bad-config", f"{directory / PUBLIC} does not have the key of {KEY}", "Restore the two files from one backup."
        )
    return AuditKeys(signer, verifiers)


def parse_public(data: bytes, where: str) -> tuple[VerifierKey, ...]:
    """The verifier keys of an audit.pub: at least one, all of one name. Raises `UsageError("bad-config")`."""
    try:
        lines = data.decode("ascii").split()
        keys = tuple(VerifierKey.parse(line) for line in lines[:MAX_KEYS])
    except (PeerError, UnicodeDecodeError) as error:
        raise UsageError("bad-config", f"{where} holds something else than verifier keys, one a line") from error
    if not keys or len({key.name for key in keys}) != 1:
        raise UsageError("bad-config", f"{where} does not hold the verifier keys of one log")
    return keys


def create(directory: Path) -> VerifierKey:
    """The first key of a directory, or the next: the old private key is gone then, its public half stays in audit.pub.

    audit.pub is written first: whenever this is cut off, it has the key that signs. Raises as `read` does."""
    old: tuple[VerifierKey, ...] = ()
    if (directory / PUBLIC).exists():
        old = parse_public(_read(directory / PUBLIC), str(directory / PUBLIC))
    name = old[-1].name if old else f"enclave-cc.audit/{secrets.token_hex(8)}"
    key = ed25519.SigningKey.generate()
    made = VerifierKey(name, key.public)
    replace_file(directory / PUBLIC, "".join(f"{each}\n" for each in (*old, made)).encode(), mode=0o644)
    replace_file(directory / KEY, key.to_pem().reveal(), mode=0o600)
    return made


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError("not-found", f"there is no {path}", _FIX) from error
    except OSError as error:
        raise EnvironmentFault("environment", f"{path} cannot be read: {error.strerror}") from error
