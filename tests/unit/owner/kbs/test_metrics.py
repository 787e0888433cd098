"""Metrics: the exposition format, fixed series, several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from enclave_cc.owner.kbs.metrics import Metrics, SharedSlots

_LINE = re.compile(r'[a-z_]+(\{([a-z_]+="[^"\\\n]*",?)+\})? [0-9.e+-]+|# (HELP|TYPE) [a-z_]+ .*')


def read(text: str) -> dict[str, float]:
    assert text.endswith("\n")
    for line in text.splitlines():
        assert _LINE.fullmatch(line), line
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")}


def test_counters_and_histograms() -> None:
    metrics = Metrics(["/a", "/b/{tag}"])
    metrics.requests.add("/a", "200")
    metrics.requests.add("/a", "200")
    metrics.requests.add("/b/secret", "299")
    for seconds in (0.0001, 0.0005, 0.03, 99):
        metrics.duration.observe(seconds, "/a")
    metrics.active.change(2)
    metrics.active.change(-1)
    values = read(metrics.render())
    assert values['kbs_http_requests_total{route="/a",status="200"}'] == 2
    assert values['kbs_http_requests_total{route="other",status="other"}'] == 1
    assert values['kbs_http_request_duration_seconds_bucket{route="/a",le="0.0005"}'] == 2
    assert values['kbs_http_request_duration_seconds_bucket{route="/a",le="0.05"}'] == 3
    assert values['kbs_http_request_duration_seconds_bucket{route="/a",le="+Inf"}'] == 4
    assert values['kbs_http_request_duration_seconds_count{route="/a"}'] == 4
    assert values['kbs_http_request_duration_seconds_sum{route="/a"}'] == pytest.approx(99.0306)
    assert values["kbs_http_active_connections"] == 1
    assert values["kbs_auth_requests_total"] == 0
    assert "secret" not in metrics.render()


def test_time_is_observed_when_the_block_raises_too() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError), metrics.stages.time("verify"):
        raise ValueError
    assert read(metrics.render())['kbs_stage_duration_seconds_count{stage="verify"}'] == 1


def test_processes_share_their_counts() -> None:
    """Also those of processes that have ended, or were killed: a counter never falls."""
    descriptor = SharedSlots.create()
    code = (
        "import os, sys; from enclave_cc.owner.kbs.metrics import Metrics, SharedSlots\n"
        "metrics = Metrics(['/a'], shared=SharedSlots(int(sys.argv[1])))\n"
        "metrics.auth_requests.add(); metrics.requests.add('/a', '200')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )

    def start() -> subprocess.Popen[Any]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    try:
        own = Metrics(["/a"], shared=SharedSlots(descriptor))
        own.auth_requests.add()
        running = [start(), start()]
        assert read(own.render())["kbs_auth_requests_total"] == 3
        running[0].kill()
        running[0].communicate()
        assert read(own.render())["kbs_auth_requests_total"] == 3
        running.append(start())  # goes on in the dead one's row
        values = read(own.render())
        assert values["kbs_auth_requests_total"] == 4
        assert values['kbs_http_requests_total{route="/a",status="200"}'] == 3
        for process in running[1:]:
            process.communicate()
        assert read(own.render())["kbs_auth_requests_total"] == 4
    finally:
        os.close(descriptor)
