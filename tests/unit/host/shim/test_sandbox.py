"""What a pod's shim decides of its agent."""

from __future__ import annotations

import pytest

from enclave_cc.host.shim import sandbox


@pytest.mark.parametrize(("own", "agents"), [("-999\n", 0), ("0\n", 0), ("300\n", 300)])
def test_an_agent_is_not_exempt_from_being_killed_for_memory(own: str, agents: int) -> None:
    assert sandbox.choose_oom_score(own) == agents
