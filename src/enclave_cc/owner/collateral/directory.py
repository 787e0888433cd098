"""Collateral in a directory that somebody else fills: one QuoteCollateralV3 document per file `*.json`.

The directory is looked at again when a file comes, goes or changes; write files beside it and rename them in.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from enclave_cc.errors import PeerError
from enclave_cc.owner.collateral.source import Found
from enclave_cc.owner.verifier.collateral import name_platform
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.wire.sgx.collateral import COLLATERAL_LIMIT, Collateral

CHECK_SECONDS = 2.0
MAX_FILES = 1000

_Key = tuple[bytes, bytes, str]  # root (DER), FMSPC, PCK CA
_Stamp = tuple[int, int, int]


class DirectoryCollateral:
    """Safe for many threads. `report` is told once about each file that is no collateral: (file name, why)."""

    def __init__(self, path: Path, *, report: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, tuple[_Stamp, tuple[_Key, Found] | None]] = {}
        self._found: dict[_Key, list[Found]] = {}
        self._checked = float("-inf")

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        """Of several for one platform, the latest that holds at `at`."""
        with self._lock:
            if self._clock() >= self._checked + CHECK_SECONDS:
                self._checked = self._clock()
                self._look()
            candidates = self._found.get((root.certificate, origin.fmspc, origin.pck_ca), [])
        return max(candidates, key=lambda each: (each.start <= at <= each.end, each.start), default=None)

    def _look(self) -> None:
        try:
            with os.scandir(self._path) as entries:
                stats = {entry.name: entry.stat() for entry in entries if entry.name.endswith(".json") and entry.is_file()}
        except OSError as error:  # gone for a moment: what was known goes on
            self._report(str(self._path), error.strerror or "cannot be read")
            return
        stamps = {name: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in sorted(stats.items())[:MAX_FILES]}
        if stamps == {name: stamp for name, (stamp, _) in self._files.items()}:
            return
        files = {}
        for name, stamp in stamps.items():
            known = self._files.get(name)
            files[name] = known if known is not None and known[0] == stamp else (stamp, self._read(name))
        self._files, self._found = files, {}
        for _, loaded in files.values():
            if loaded is not None:
                self._found.setdefault(loaded[0], []).append(loaded[1])

    def _read(self, name: str) -> tuple[_Key, Found] | None:
        try:
            with (self._path / name).open("rb") as file:
                collateral = Collateral.parse(file.read(COLLATERAL_LIMIT + 1))
            return name_platform(collateral), Found.read(collateral)
        except PeerError as error:
            self._report(name, error.what)
        except OSError as error:
            self._report(name, error.strerror or "cannot be read")
        return None
