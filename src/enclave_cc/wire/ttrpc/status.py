"""Errors as ttrpc statuses and back.

One of our errors travels whole: `Status.code` is its ttrpc code, `Status.message` reads `code: what. fix` for Go
peers and logs, and an `ErrorDetail` among the details keeps its parts. A peer's status becomes a `PeerError` with
the code of the detail when we know that code, else with the code nearest to the ttrpc one.
"""

from __future__ import annotations

from enclave_cc import errors
from enclave_cc.errors import EnclaveCcError, PeerError
from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import ttrpc as pb

# A foreign status (containerd's, say) has a google.rpc.Code only; these are the nearest of ours.
_NEAREST: dict[int, str] = {
    errors.Status.INVALID_ARGUMENT: "usage",
    errors.Status.DEADLINE_EXCEEDED: "deadline",
    errors.Status.NOT_FOUND: "not-found",
    errors.Status.ALREADY_EXISTS: "already-exists",
    errors.Status.PERMISSION_DENIED: "forbidden",
    errors.Status.RESOURCE_EXHAUSTED: "too-large",
    errors.Status.FAILED_PRECONDITION: "wrong-state",
    errors.Status.UNAUTHENTICATED: "unauthenticated",
}


def from_error(error: EnclaveCcError, *, whole: bool = True) -> pb.Status:
    """The status that carries `error`; `whole`: with the detail that keeps its parts, which only our own peers can read."""
    if not whole:
        return make(error.row.ttrpc, str(error))
    detail = codec.encode(pb.ErrorDetail(code=error.code, what=error.what, fix=error.fix))
    return pb.Status(code=int(error.row.ttrpc), message=str(error), details=(pb.Any(pb.ERROR_DETAIL_URL, detail),))


def make(code: errors.Status, message: str) -> pb.Status:
    """A plain status, for what the protocol itself refuses."""
    return pb.Status(code=int(code), message=message)


def to_error(status: pb.Status) -> PeerError:
    """The error behind a status that is not OK; all text in it is foreign and capped."""
    for detail in status.details:
        if detail.type_url != pb.ERROR_DETAIL_URL:
            continue
        try:
            ours = codec.decode(pb.ErrorDetail, detail.value)
        except PeerError:
            continue  # a broken detail takes nothing from the status around it
        if ours.code in errors.TABLE:
            return PeerError(ours.code, errors.foreign(ours.what), errors.foreign(ours.fix))
    text = errors.foreign(status.message) or f"status {status.code}"
    return PeerError(_NEAREST.get(status.code, "rpc-failed"), f"the peer answered: {text}")
