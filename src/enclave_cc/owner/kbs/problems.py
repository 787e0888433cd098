"""Errors as the Error JSON, with the status that its reader expects.

Upstream answers 401 to nearly everything. Its clients take 401 for "attest again" and try three times, 404 for "there
is no such resource", and anything else for final. So 401 is kept for what attesting again can heal; a denial by policy
is 403 and a missing resource 404, as upstream's own documentation has it.
"""

from __future__ import annotations

from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.http import HttpAnswer, PathUnknown
from enclave_cc.wire.rcar import messages

_DENIED_STATUS = {"AttestationError": 401, "ResourceNotFound": 404}
_VARIANTS = {
    "unauthenticated": "TokenNotFound",
    "forbidden": "AdminAuthAccess",
    "kbs-protocol": "AttestationError",
    "policy-invalid": "ParsePolicyError",
    "malformed": "InvalidRequest",
    "too-large": "PayloadTooLarge",
    "not-found": "ResourceNotFound",
    "rate-limited": "TooManyRequests",
    "deadline": "RequestTimeout",
}


class Denied(PeerError):
    """A refusal that was logged under `decision`. Carries what the client may see: variant, code, id."""

    def __init__(self, variant: str, code: str, decision: str) -> None:
        super().__init__(code, f"denied, id {decision}")
        self.variant = variant
        self.decision = decision


class AdminDenied(PeerError):
    """A refusal of who would administer, logged under `decision`; code and words are the gate's."""

    def __init__(self, error: PeerError, decision: str) -> None:
        super().__init__(error.code, error.what, error.fix)
        self.decision = decision


def problem_answer(error: EnclaveCcError, log: Log, path: str) -> HttpAnswer:
    """The answer that tells a client of `error`; what is the KBS's own affair goes to its log instead."""
    match error:
        case Denied():
            status = _DENIED_STATUS.get(error.variant, 403)
            problem = messages.Problem(error.variant, error.what, error.code, error.decision)
        case PathUnknown():
            status, problem = error.status, messages.Problem(error.variant, error.what, error.code)
        case EnvironmentFault():
            # The KBS's own trouble: its administrator reads it in the log, nobody else.
            log.write("fault", {"code": error.code, "what": error.what})
            status, problem = 503, messages.Problem("PluginInternalError", "the KBS cannot answer now", error.code)
        case _:
            status = 401 if error.code == "kbs-protocol" else error.row.http  # upstream's status for a wrong version
            decision = error.decision if isinstance(error, AdminDenied) else None
            problem = messages.Problem(_VARIANTS.get(error.code, "PluginInternalError"), error.what, error.code, decision)
            if status in (401, 403):
                log.write("refused", {"code": error.code, "what": error.what, "path": path[:256]})
    return HttpAnswer(status, problem.encode())
