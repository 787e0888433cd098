"""What a server allows its clients, and itself in the end."""

from __future__ import annotations

from enclave_cc.owner.kbs.rate_limits import RateLimits
from enclave_cc.record import field, record


@record
class Limits:
    """Seconds and bytes.

    `request_deadline`: for a request to come in whole, and for a connection to stay idle. `end_delay`: after SIGTERM, to go
    on as before while `/readyz` says no; `end_deadline`: then, for running requests to end; `end_idle`: a connection
    that was used so lately may have its next request under way, and is given that long to have it answered.
    `log_requests`: a line in the log for each.
    """

    request_deadline: float = 30.0
    body_limit: int = 2 * 1024 * 1024
    end_deadline: float = 30.0
    end_delay: float = 0.0
    end_idle: float = 2.0
    rates: RateLimits = field(default_factory=RateLimits)
    log_requests: bool = False
