"""The policies a new KBS begins with."""

from __future__ import annotations

from importlib import resources

ATTESTATION_ID = "default_cpu"  # Trustee's name: policy "default" for TEE class "cpu"
RELEASE_ID = "resource-policy"

_FILES = {ATTESTATION_ID: "default_attestation.rego", RELEASE_ID: "default_release.rego"}


def read_default(policy_id: str) -> str:
    """The text of a default policy."""
    return resources.files(__package__).joinpath(_FILES[policy_id]).read_text(encoding="utf-8")
