"""Every error this project raises on purpose, and the one table that numbers them.

    EnclaveCcError
    ├── PeerError          the other side sent something wrong, stale, forged or broken
    ├── UsageError         the caller asked for something that cannot be asked
    └── EnvironmentFault   this machine, a disk or a service is not what it must be

Parsers of hostile bytes raise `PeerError` and nothing else. The *code* is the stable part: tests, scripts and
documents rely on it. `what` says what was wrong and never carries a secret, nor, where the host can read it, a
reason that belongs to the data owner (the KBS sends an id instead); `fix` says what the reader can do.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from enclave_cc.record import record

# Foreign text inside our messages is cut here, so that a peer cannot fill a log (kopf caps at 256 too).
FOREIGN_TEXT_LIMIT = 256


class Status(IntEnum):
    """ttrpc/gRPC status codes (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@record
class Row:
    """One line of the table: what a code means to a shell, a ttrpc peer, an HTTP client and a reader."""

    exit: int
    ttrpc: Status
    http: int
    fix: str


# Exit codes: 2 usage, 3-9 environment, 10-29 evidence and keys, 30-49 image, 50-69 enclave and launch, 70 bug.
# 125-127 and 128+n stay free: `run` uses them as docker and runc do.
TABLE: dict[str, Row] = {
    # usage
    "usage": Row(2, Status.INVALID_ARGUMENT, 400, "See `enclave-cc COMMAND --help`."),
    "bad-reference": Row(2, Status.INVALID_ARGUMENT, 400, "Write it as HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]."),
    "bad-config": Row(2, Status.INVALID_ARGUMENT, 400, "Correct the configuration file named in the message."),
    "not-found": Row(3, Status.NOT_FOUND, 404, "Check the name with the matching `ls` or `ps`."),
    "already-exists": Row(3, Status.ALREADY_EXISTS, 409, "Choose another name, or remove the present one first."),
    "wrong-state": Row(3, Status.FAILED_PRECONDITION, 409, "Check its state with `enclave-cc ps`."),
    "unsupported": Row(3, Status.UNIMPLEMENTED, 501, "See README, Limits."),
    # environment
    "missing-tool": Row(4, Status.FAILED_PRECONDITION, 500, "Run `enclave-cc doctor`; it says how to get it."),
    "environment": Row(4, Status.FAILED_PRECONDITION, 500, "Run `enclave-cc doctor`."),
    "disk-full": Row(5, Status.RESOURCE_EXHAUSTED, 507, "Free space, or run `enclave-cc image gc`."),
    "memory-limit": Row(6, Status.RESOURCE_EXHAUSTED, 500, "Give the container more with --memory."),
    "deadline": Row(7, Status.DEADLINE_EXCEEDED, 504, "Raise the deadline in the configuration if the work is that long."),
    "registry-unreachable": Row(
        8, Status.UNAVAILABLE, 502, "Check that it runs and its name resolves; one without TLS is named in [registry] insecure."
    ),
    "kbs-unreachable": Row(8, Status.UNAVAILABLE, 502, "Check that the KBS runs and that [kbs] url names it."),
    "database-unreachable": Row(8, Status.UNAVAILABLE, 503, "Check that PostgreSQL runs, and [database] url in kbs.toml."),
    "store-unreachable": Row(8, Status.UNAVAILABLE, 503, "Check that the resource back-end runs and that [resources] names it."),
    "store-sealed": Row(8, Status.UNAVAILABLE, 503, "Unseal Vault; what it holds is unharmed."),
    "store-denied": Row(
        8, Status.PERMISSION_DENIED, 503, "Give the KBS the token, role or PIN, and the rights that docs/guides/resources.md lists."
    ),
    "store-failed": Row(8, Status.INTERNAL, 503, "The back-end holds or says something else than it should; see its log."),
    "agent-unreachable": Row(9, Status.UNAVAILABLE, 502, "Look into the agent's log with `enclave-cc logs --agent`."),
    "rpc-failed": Row(9, Status.INTERNAL, 502, "The message carries the peer's own words; see its log."),
    "runc-failed": Row(9, Status.INTERNAL, 500, "The message carries runc's own words; run `enclave-cc doctor`."),
    # evidence, KBS, keys
    "tee-refused": Row(
        10, Status.FAILED_PRECONDITION, 500, 'Name a platform in the configuration; for development [platform] tee = "simulated".'
    ),
    "malformed": Row(11, Status.INVALID_ARGUMENT, 400, "The sender is broken or hostile; nothing was used of it."),
    "quote-refused": Row(12, Status.PERMISSION_DENIED, 403, "The data owner finds the reason with `enclave-cc explain`."),
    "debug-enclave": Row(12, Status.PERMISSION_DENIED, 403, "Run a production enclave: debug enclaves show their memory."),
    "untrusted-root": Row(
        12, Status.PERMISSION_DENIED, 403, "If this root is meant, the owner names it with `enclave-cc kbs root add`."
    ),
    "tcb-refused": Row(12, Status.PERMISSION_DENIED, 403, "Update the platform, or accept this TCB status in the policy."),
    "collateral-refused": Row(12, Status.PERMISSION_DENIED, 403, "Give collateral of this platform that is valid now."),
    "measurement-unknown": Row(
        13, Status.PERMISSION_DENIED, 403, "If this build is meant, the owner adds it with `enclave-cc refvals add`."
    ),
    "kbs-denied": Row(14, Status.PERMISSION_DENIED, 403, "The data owner looks up this id in the KBS log."),
    "kbs-identity": Row(15, Status.UNAUTHENTICATED, 502, "The server is not the pinned KBS; check [kbs] url and certificate."),
    "kbs-protocol": Row(15, Status.INTERNAL, 502, "The KBS speaks another protocol version; 0.4.0 is needed."),
    "unauthenticated": Row(16, Status.UNAUTHENTICATED, 401, "Attest, or present a valid token."),
    "forbidden": Row(16, Status.PERMISSION_DENIED, 403, "Use a token whose role covers this path."),
    "key-missing": Row(17, Status.NOT_FOUND, 404, "The owner registers the image's key again with `image publish`."),
    "too-large": Row(18, Status.RESOURCE_EXHAUSTED, 413, "Send less; the limit is in the message."),
    "rate-limited": Row(18, Status.RESOURCE_EXHAUSTED, 429, "Wait, then try again."),
    "policy-invalid": Row(19, Status.INVALID_ARGUMENT, 400, "Correct the policy; `enclave-cc policy lint` shows where."),
    "jwe-broken": Row(19, Status.DATA_LOSS, 400, "The answer was not encrypted for this enclave, or was changed."),
    # audit log
    "audit-broken": Row(
        20, Status.DATA_LOSS, 500, "Keep log and message as evidence; compare with exports that were kept elsewhere."
    ),
    "audit-truncated": Row(
        20, Status.DATA_LOSS, 500, "Keep it as evidence; get the whole file or log, or ask its operator for what is missing."
    ),
    "audit-forked": Row(
        20, Status.DATA_LOSS, 500, "Keep both checkpoints: together they prove that the log's operator shows two histories."
    ),
    "audit-signature": Row(
        20, Status.UNAUTHENTICATED, 500, "Check that --key is this log's audit.pub; if it is, the log was signed by somebody else."
    ),
    # image
    "signature-policy-missing": Row(30, Status.FAILED_PRECONDITION, 403, "The owner sets one with `image publish`."),
    "signature-missing": Row(31, Status.PERMISSION_DENIED, 403, "Sign the image with `enclave-cc image sign`."),
    "signature-wrong": Row(31, Status.PERMISSION_DENIED, 403, "The signature does not fit; publish the image again."),
    "signature-untrusted": Row(31, Status.PERMISSION_DENIED, 403, "Sign with a key that the signature policy names."),
    "image-not-found": Row(32, Status.NOT_FOUND, 404, "Check the reference, and that it was pushed."),
    "registry-denied": Row(33, Status.PERMISSION_DENIED, 403, "The owner sets the registry credential in the KBS."),
    "digest-mismatch": Row(34, Status.DATA_LOSS, 502, "The registry served other bytes than were signed; push again."),
    "layer-broken": Row(35, Status.DATA_LOSS, 502, "The layer cannot be decrypted or unpacked as signed; publish again."),
    "not-encrypted": Row(36, Status.FAILED_PRECONDITION, 400, "Give an OCI image whose layers can be encrypted."),
    "unsupported-image": Row(37, Status.UNIMPLEMENTED, 400, "See README, Limits, for what an image may hold."),
    "registry-failed": Row(38, Status.UNAVAILABLE, 502, "The registry answered wrongly; see its log."),
    # enclave and launch
    "seal-broken": Row(50, Status.DATA_LOSS, 500, "A sealed block on disk was changed; remove it with `image gc` and run again."),
    "report-refused": Row(51, Status.UNAUTHENTICATED, 403, "The peer is not an enclave of this platform and identity."),
    "handover-refused": Row(52, Status.UNAUTHENTICATED, 403, "Start the container again; each handover works once."),
    "handover-replayed": Row(52, Status.UNAUTHENTICATED, 403, "Start the container again; each handover works once."),
    "identity-refused": Row(53, Status.PERMISSION_DENIED, 403, "Install the bundles that were built together."),
    "launch-denied": Row(54, Status.PERMISSION_DENIED, 403, "The owner allows it with `enclave-cc image publish --allow ...`."),
    "launch-failed": Row(55, Status.INTERNAL, 500, "The image's own configuration cannot be carried out; see the message."),
    "agent-died": Row(56, Status.UNAVAILABLE, 502, "Run it again; see `enclave-cc logs --agent`."),
    "app-died": Row(57, Status.ABORTED, 500, "Run it again; see `enclave-cc logs`."),
    "mount-failed": Row(58, Status.INTERNAL, 500, "Run `enclave-cc doctor`."),
    "exec-failed": Row(59, Status.NOT_FOUND, 404, "Check the command's name inside the image."),
    "measurement-changed": Row(60, Status.DATA_LOSS, 500, "The bundle on disk is not as built; install it again."),
    # bug
    "internal": Row(70, Status.INTERNAL, 500, "This is a bug; please report it with the log."),
}

# The same codes in the data owner's commands, where advice to a node would mislead.
OWNER_FIXES: dict[str, str] = {
    "not-found": "Check the name with the matching `ls`.",
    "environment": "Check that the path or address in the message is yours to use.",
    "disk-full": "Free space where the message says.",
    "deadline": "Try again; image commands take a longer --deadline.",
    "registry-unreachable": "Check that it runs and its name resolves; one without TLS needs --insecure, an own CA --ca.",
    "registry-denied": "Give --auth-file, or log in with docker or podman, as somebody who may do this.",
    "kbs-unreachable": "Check that `enclave-cc kbs serve` runs, and where: kbs.url or owner.toml's url in the KBS directory.",
    "kbs-identity": "The server is not the KBS of this directory; check url and certificate in its owner.toml.",
    "unauthenticated": "The KBS does not know this admin key: check admin_key in owner.toml, [admin] in kbs.toml, and the clocks.",
    "bad-config": "Correct the file named in the message.",
}


class EnclaveCcError(Exception):
    """Base class; carries a code of `TABLE`, what was wrong and what to do about it."""

    def __init__(self, code: str, what: str, fix: str | None = None) -> None:
        if type(self) is EnclaveCcError:
            raise TypeError("raise PeerError, UsageError or EnvironmentFault")
        row = TABLE[code]  # an unknown code is our bug and must not pass silently
        super().__init__(what)
        self.code = code
        self.what = what
        self.fix = fix if fix is not None else row.fix

    @property
    def row(self) -> Row:
        return TABLE[self.code]

    @property
    def exit(self) -> int:
        return self.row.exit

    def __str__(self) -> str:
        return f"{self.code}: {self.what.rstrip('.')}. {self.fix}"

    def to_json(self) -> dict[str, str | int]:
        return {"code": self.code, "what": self.what, "fix": self.fix, "exit": self.exit}


class PeerError(EnclaveCcError):
    """The peer, or bytes that came from outside, broke a rule."""


class UsageError(EnclaveCcError):
    """The caller of this program or function asked for something wrong."""


class EnvironmentFault(EnclaveCcError):
    """The machine, a file system or a service failed us."""


def explain_os_error(error: OSError, where: str = "") -> EnvironmentFault:
    """An error of the operating system, coded: "disk-full" where it is one. `where` stands for the path if it has none."""
    place = where or (str(error.filename) if error.filename is not None else "")
    fix = "Run it as root, or as its owner." if error.errno in (errno.EACCES, errno.EPERM) else None
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        fix = "Check the path."
    code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "environment"
    return EnvironmentFault(code, (f"{foreign(place)}: " if place else "") + (error.strerror or foreign(error)), fix)


def foreign(text: object) -> str:
    """Foreign text made fit for a message: printable, one line, at most `FOREIGN_TEXT_LIMIT` characters."""
    raw = text.decode("utf-8", "replace") if isinstance(text, bytes | bytearray) else str(text)
    clean = raw[: FOREIGN_TEXT_LIMIT + 1]
    if not clean.isprintable():
        clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in clean)
    return clean if len(clean) <= FOREIGN_TEXT_LIMIT else clean[:FOREIGN_TEXT_LIMIT] + "…"
