"""Where collateral comes from, as `[collateral]` of kbs.toml says it; beside what `kbs root add` stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.owner.collateral.directory import DirectoryCollateral
from enclave_cc.owner.collateral.pccs import PccsClient, PccsSettings
from enclave_cc.owner.collateral.service import CachedService, Freshness
from enclave_cc.owner.collateral.source import CollateralSource, Sources
from enclave_cc.owner.collateral.stored import StoredCollateral
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.kbs.settings import Section
from enclave_cc.owner.kbs.trusted_issuers import read_file
from enclave_cc.record import field, record

UPDATES = ("standard", "early")


@record
class CollateralSettings:
    directory: Path | None = None
    service: PccsSettings | None = None
    freshness: Freshness = field(default_factory=Freshness)

    @property
    def fetches(self) -> bool:
        """Whether there is another origin than what the owner stored."""
        return self.directory is not None or self.service is not None

    @classmethod
    def read(cls, section: Section, directory: Path) -> CollateralSettings:
        """Raises `UsageError("bad-config")`."""
        path, url, certificate = section.text("directory"), section.text("url"), section.text("certificate")
        root_crl, update = section.text("root_crl_url"), section.text("update", "standard") or ""
        deadline = section.number("deadline", 10, low=0.1, high=300)
        freshness = Freshness(
            refresh=section.number("refresh", 3600, low=1),
            retry=section.number("retry", 30, low=1),
            deadline=deadline,
        )
        section.finish()
        if update not in UPDATES:
            raise section.fault("update", f"{update!r} is not one of {', '.join(UPDATES)}")
        for name, value in (("url", url), ("root_crl_url", root_crl)):
            if value is not None and not value.startswith("https://"):
                raise section.fault(name, "an https URL is needed")
        service = None
        if url is not None:
            pem = None if certificate is None else read_file(directory / certificate).decode("ascii", "replace")
            service = PccsSettings(url, pem, root_crl, deadline, update)
        elif certificate is not None or root_crl is not None:
            raise section.fault("url", "certificate and root_crl_url are of a service, which url would name")
        return cls(None if path is None else directory / path, service, freshness)


class CollateralSources(Sources):
    """What `settings` name, the freshest origin first: service, directory, then the owner's own bundles.

    `report` is told what went wrong: (event, where, why). `close` when done.
    """

    def __init__(self, settings: CollateralSettings, roots: RootStore, report: Callable[[str, str, str], None]) -> None:
        sources: list[CollateralSource] = []
        self._service: CachedService | None = None
        if settings.service is not None:
            self._service = CachedService(
                PccsClient(settings.service), settings.freshness, report=lambda where, why: report("collateral-service", where, why)
            )
            sources.append(self._service)
        if settings.directory is not None:
            if not settings.directory.is_dir():
                raise UsageError("bad-config", f"[collateral] directory: {settings.directory} is not a directory")
            sources.append(DirectoryCollateral(settings.directory, report=lambda where, why: report("collateral-file", where, why)))
        super().__init__([*sources, StoredCollateral(roots)])

    def close(self) -> None:
        if self._service is not None:
            self._service.close()
