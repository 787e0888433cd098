"""Waiting for an agent that does not come."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from enclave_cc.errors import EnvironmentFault
from enclave_cc.host.sandbox.agent_client import AgentClient


def test_a_wait_ends_when_it_is_given_up(tmp_path: Path) -> None:
    given_up = threading.Event()
    threading.Timer(0.05, given_up.set).start()
    pidfd = os.pidfd_open(os.getpid())
    AgentClient(tmp_path / "none", deadline=1).wait(pidfd, deadline=60, given_up=given_up.is_set)
    os.close(pidfd)


def test_a_wait_ends_with_the_agent_or_the_deadline(tmp_path: Path) -> None:
    client = AgentClient(tmp_path / "none", deadline=1)
    with subprocess.Popen(["sleep", "100"]) as process:
        pidfd = os.pidfd_open(process.pid)
        with pytest.raises(EnvironmentFault) as caught:
            client.wait(pidfd, deadline=0.05)
        assert caught.value.code == "deadline"
        process.kill()
        with pytest.raises(EnvironmentFault) as caught:
            client.wait(pidfd, deadline=60)
        assert caught.value.code == "agent-died"
    os.close(pidfd)
