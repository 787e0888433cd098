"""Chooses the platform back-end by the measured configuration's name. The default refuses."""

from __future__ import annotations

from enclave_cc.enclave.tee.platform import Platform
from enclave_cc.errors import EnvironmentFault, UsageError

REFUSE = "refuse"
NAMES = (REFUSE, "simulated")


def open_platform(name: str = REFUSE, *, cpu_socket: str = "", deadline: float = 10.0) -> Platform:
    """The platform called `name`; `cpu_socket` is the simulated CPU's, `deadline` in seconds is for each call to it.

    Raises `EnvironmentFault("tee-refused")` for "refuse", `UsageError("bad-config")` for a name that is none.
    """
    match name:
        case "refuse":
            raise EnvironmentFault("tee-refused", "no platform is configured, so nothing confidential is started")
        case "simulated":
            from enclave_cc.enclave.tee.simulated import SimulatedPlatform  # only where chosen

            return SimulatedPlatform(cpu_socket, deadline=deadline)
        case _:
            raise UsageError("bad-config", f"there is no platform {name!r}; known are {', '.join(NAMES)}")
