"""Which verifiers a KBS has: those built in, and third-party ones by entry point, only where kbs.toml names them.

A plug-in is an installed package with an entry point in the group `enclave_cc.evidence_verifiers`: a callable that takes
a `PluginContext` and returns an `EvidenceVerifier`. It runs inside the KBS, with all of its secrets: name whom you trust.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from enclave_cc.errors import PeerError, UsageError, foreign
from enclave_cc.owner.collateral.source import CollateralSource
from enclave_cc.owner.kbs.decisions import Log
from enclave_cc.owner.kbs.evidence import CODES, EvidenceVerifier, SampleDeviceVerifier, SampleVerifier, VerifiedEvidence
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.record import field, record

GROUP = "enclave_cc.evidence_verifiers"
BUILT_IN = ("sgx", "sample", "sampledevice")
_TEE = re.compile(r"[a-z0-9-]{1,32}\Z")
_TEE_CLASS = re.compile(r"[a-z]{1,16}\Z")


@record
class PluginSettings:
    """`[attestation.plugins.TEE]`: `entry_point` names the plug-in, `settings` is the plug-in's own table."""

    entry_point: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, section: Section) -> PluginSettings:
        """Raises `UsageError("bad-config")`."""
        name, settings = section.text("entry_point"), section.raw("settings")
        if name is None:
            raise section.fault("entry_point", "the name of the plug-in is needed")
        if settings is not None and not isinstance(settings, Mapping):
            raise section.fault("settings", "a table is needed")
        section.finish()
        return cls(name, dict(settings or {}))


@record
class PluginContext:
    """What a plug-in gets: its kind of TEE, its settings, the KBS directory (for paths in them), a clock."""

    tee: str
    settings: Mapping[str, Any]
    directory: Path
    now: Callable[[], float] = time.time


def check_tees(tees: Sequence[str], plugins: Mapping[str, PluginSettings], section: Section) -> None:
    """Raises `UsageError("bad-config")` for a kind of TEE that nobody verifies, or a plug-in for none."""
    for tee in tees:
        if tee not in BUILT_IN and tee not in plugins:
            known = ", ".join((*BUILT_IN, *sorted(plugins)))
            raise section.fault("tees", f"{tee!r} is not one of {known}, nor has it a plug-in")
    for tee in plugins:
        if tee in BUILT_IN or _TEE.match(tee) is None:
            raise section.fault("plugins", f"{tee!r} is built in, or no name of a TEE")
        if tee not in tees:
            raise section.fault("plugins", f"there is a plug-in for {tee!r}, which tees does not name")


def make_verifiers(
    tees: Sequence[str],
    plugins: Mapping[str, PluginSettings],
    *,
    roots: RootStore,
    collateral: CollateralSource,
    directory: Path,
    log: Log,
    now: Callable[[], float] = time.time,
) -> dict[str, EvidenceVerifier]:
    """The verifiers of the kinds of evidence that the configuration names. Raises `UsageError("bad-config")`."""
    made: dict[str, EvidenceVerifier] = {}
    for tee in tees:
        match tee:
            case "sgx":
                from enclave_cc.owner.kbs.sgx_evidence import SgxVerifier

                made[tee] = SgxVerifier(roots, collateral, now=now)
            case "sample":
                made[tee] = SampleVerifier()
            case "sampledevice":
                made[tee] = SampleDeviceVerifier()
            case _:
                made[tee] = load_plugin(PluginContext(tee, plugins[tee].settings, directory, now), plugins[tee].entry_point, log)
    return made


def load_plugin(context: PluginContext, name: str, log: Log) -> EvidenceVerifier:
    """The plug-in of an entry point. Raises `UsageError("bad-config")`."""
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    if len(found) != 1:
        what = "no installed package has" if not found else "several installed packages have"
        raise UsageError("bad-config", f"{what} an entry point {foreign(name)!r} in the group {GROUP}", "Install the plug-in once.")
    try:
        verifier = found[0].load()(context)
        tee = verifier.tee
    except Exception as error:
        raise UsageError("bad-config", f"the plug-in {name} cannot be used: {foreign(error)}") from error
    if tee != context.tee:
        raise UsageError("bad-config", f"the plug-in {name} verifies {foreign(tee)!r}, not {context.tee!r}")
    return GuardedVerifier(verifier, log)


class GuardedVerifier:
    """A third party's verifier, held to the interface: what fails or answers wrongly refuses, and the owner's log says so."""

    def __init__(self, verifier: EvidenceVerifier, log: Log) -> None:
        self.tee = verifier.tee
        self._verifier = verifier
        self._log = log

    def verify(self, evidence: object, *, report_data: bytes, init_data_digest: bytes | None) -> VerifiedEvidence:
        try:
            verified = self._verifier.verify(evidence, report_data=report_data, init_data_digest=init_data_digest)
            if not isinstance(verified, VerifiedEvidence) or verified.tee != self.tee or not _TEE_CLASS.match(verified.tee_class):
                raise TypeError("not verified evidence of this kind")
            json.dumps(dict(verified.claims), allow_nan=False)
        except PeerError as error:
            if error.code in CODES:
                raise
            raise self._fail(f"code {error.code}") from error
        except Exception as error:  # another party's code: whatever it raises, nobody gets a token for it
            raise self._fail(type(error).__name__) from error
        return verified

    def _fail(self, how: str) -> PeerError:
        self._log.write("verifier-failed", {"tee": self.tee, "error": how})
        return PeerError("quote-refused", f"the verifier of {self.tee} failed ({how})", "This is a bug of the plug-in.")
