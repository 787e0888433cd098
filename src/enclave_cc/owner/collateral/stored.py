"""Collateral that the owner gave with `enclave-cc kbs root add`: the offline bundle."""

from __future__ import annotations

import threading
from collections import OrderedDict

from enclave_cc.owner.collateral.source import Found
from enclave_cc.owner.kbs.roots import RootStore
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.wire.sgx.collateral import Collateral

_PARSED_KEPT = 64


class StoredCollateral:
    """Reads the KBS's database at every call; documents are parsed once."""

    def __init__(self, roots: RootStore) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        self._parsed: OrderedDict[str, Found] = OrderedDict()

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        document = self._roots.find_collateral(root.name, origin.fmspc.hex(), origin.pck_ca)
        if document is None:
            return None
        with self._lock:
            known = self._parsed.get(document)
        if known is None:
            known = Found.read(Collateral.parse(document))
            with self._lock:
                self._parsed[document] = known
                if len(self._parsed) > _PARSED_KEPT:
                    self._parsed.popitem(last=False)
        return known
