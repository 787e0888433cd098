"""Token buckets, by an injected clock."""

from __future__ import annotations

from typing import Any

import pytest

from enclave_cc.errors import UsageError
from enclave_cc.owner.kbs import rate_limits
from enclave_cc.owner.kbs.rate_limits import Buckets, Rate, RateLimits, name_client
from enclave_cc.owner.kbs.settings import Section


def test_a_burst_then_the_rate(clock: Any) -> None:
    buckets = Buckets(Rate(2, 5), clock=clock)
    assert [buckets.take("a") for _ in range(5)] == [0] * 5
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0  # another's
    assert buckets.wait("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert buckets.wait("a") == buckets.take("a") == 0
    assert buckets.take("a") > 0
    clock.now += 1000
    assert [buckets.take("a") for _ in range(6)].count(0) == 5  # it never holds more than the burst
    assert Buckets(Rate(0, 1), clock=clock).take("a") == Buckets(Rate(0, 1)).wait("a") == 0


def test_buckets_are_bounded(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "KEPT", 10)
    buckets = Buckets(Rate(1, 1), clock=clock)
    for number in range(100):
        buckets.take(number)
    assert len(buckets._levels) == 10
    assert buckets.take(99) > 0


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:0:1", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_whom_an_address_stands_for(address: str, client: str) -> None:
    assert name_client(address) == client


def test_settings() -> None:
    made = RateLimits.read(Section({"address_rate": 5, "refusal_burst": 7}, name="limits", path="x"))
    assert (made.address.per_second, made.refusals.burst, made.admin) == (5, 7, RateLimits().admin)
    for table in ({"address_rate": -1}, {"admin_burst": 0}, {"waiting": "many"}, {"adress_rate": 1}):
        with pytest.raises(UsageError):
            RateLimits.read(Section(table, name="limits", path="x"))
