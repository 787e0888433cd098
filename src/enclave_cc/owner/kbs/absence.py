"""Why a resource that the policy allows is not there: which one may have been meant, for the data owner."""

from __future__ import annotations

import difflib
import threading

from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.kbs.rate_limits import Buckets, Rate
from enclave_cc.owner.policy.reasons import Reason
from enclave_cc.owner.policy.release import Request
from enclave_cc.owner.resources.store import ResourceStore

# A listing costs Vault a request for each path, and attesters ask as often as they like: this often we look, in each process.
LOOKS = Rate(1, 10)
_LISTED = 100
_looks = Buckets(LOOKS)
_lock = threading.Lock()


def explain_absence(resources: ResourceStore, request: Request) -> Reason:
    """The reason for `key-missing`, with the path that comes nearest when there was time to look. Safe for many threads."""
    path = "/".join(request.segments)
    near = difflib.get_close_matches(path, _list_beside(resources, request), n=1, cutoff=0.7)
    policy = request.segments[1] == "security-policy"
    return Reason(
        str(request),
        "absent",
        "a stored resource",
        "resource store",
        nearest=near[0] if near else None,
        advice="publish the image, which registers its signature policy" if policy else "the policy allows it: store it",
        command="enclave-cc image publish SRC DST" if policy else f"enclave-cc resource set {path} FILE",
        code="key-missing",
    )


def _list_beside(resources: ResourceStore, request: Request) -> list[str]:
    with _lock:
        if _looks.take(None):
            return []
    try:
        return [str(each.path) for each in resources.list(f"{request.segments[0]}/", limit=_LISTED).items]
    except (UsageError, EnvironmentFault):  # a store that cannot list, or not now
        return []
