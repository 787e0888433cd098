"""What `policy lint` knows of claims is what the verifier gives."""

from __future__ import annotations

from typing import Any

from enclave_cc.owner.policy import layout


def test_the_layout_is_what_verifiers_give(simulated: Any) -> None:
    """Every member of real claims is known to `lint`, and it knows no other."""

    def check(tree: Any, value: Any, path: tuple[str, ...]) -> None:
        for name, member in value.items():
            found = layout.find(layout.ATTESTATION, (*path, name))
            if isinstance(member, dict):
                check(tree, member, (*path, name))
            else:
                assert isinstance(found, layout.Leaf), name
                if found.kind == "hex":
                    assert len(member) == found.size * 2, name
                if found.values:
                    assert member in found.values, name

    claims = simulated.verify().to_upstream_json()
    check(layout.ATTESTATION, claims, ("sgx",))
    optional = {"platform_instance_id", "is_dynamic_platform", "is_cached_keys", "is_smt_enabled"}
    assert set(layout.SGX) - set(claims) <= optional
    assert set(layout.SGX["body"]) == set(claims["body"])  # type: ignore[call-overload]
    assert set(layout.SGX["header"]) == set(claims["header"])  # type: ignore[call-overload]
