"""Recordings with the rules of their KBS in one file, for a replay without it: JSON lines, the first of which has the rules."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enclave_cc.errors import UsageError
from enclave_cc.owner.collateral.source import Found
from enclave_cc.owner.kbs.client import AdminClient
from enclave_cc.owner.kbs.recordings import ATTEST, Recording
from enclave_cc.owner.kbs.replay import Replay
from enclave_cc.owner.kbs.replay_rules import Present, make_rules, take_number
from enclave_cc.owner.policy.rego import Policy
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.owner.verifier.quote import Origin
from enclave_cc.owner.verifier.roots import TrustedRoot
from enclave_cc.wire.sgx.collateral import Collateral

FORMAT = "enclave-cc/recordings/1"
_PAGE = 200


def export(client: AdminClient, path: Path, *, since: int = 0) -> int:
    """Writes what the KBS has recorded; returns how many. The file (mode 0600) is there whole or not at all."""
    scratch = path.with_name(f".{path.name}.new")
    count, after = 0, 0
    try:
        scratch.touch(mode=0o600)
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"format": FORMAT, **client.export_rules()}) + "\n")
            while page := client.list_recordings(after=after, since=since, limit=_PAGE):
                for each in page:
                    file.write(json.dumps(each) + "\n")
                count, after = count + len(page), int(page[-1]["number"])
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return count


class RecordingFile:
    """An exported file. Raises `UsageError`: "not-found" or "usage"."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open(encoding="utf-8") as file:
                head = json.loads(file.readline())
        except OSError as error:
            raise UsageError("not-found", f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self._malformed() from error
        if not isinstance(head, Mapping) or head.get("format") != FORMAT:
            raise self._malformed()
        self._rules = head

    def read(self, since: int = 0) -> Iterator[Recording]:
        with self._path.open(encoding="utf-8") as file:
            file.readline()
            for line in file:
                try:
                    found = Recording.from_json(json.loads(line))
                except ValueError as error:
                    raise self._malformed() from error
                if found.at >= since:
                    yield found

    def replay(self, request: Mapping[str, Any], now: float) -> Replay:
        """The replay that the KBS would make of a request of `replay_rules` with `since`, at once over the whole file."""
        attestations = {each.subject: each for each in self.read() if each.stage == ATTEST}
        replay = Replay(*make_rules(request, self._read_present(), now), attestations.get)
        replay.run(list(self.read(take_number(request, "since") or 0)))
        return replay

    def _read_present(self) -> Present:
        try:
            policies = {each["id"]: Policy(each["id"], each["text"], each["version"]) for each in self._rules["policies"]}
            values = [ReferenceValue.from_json(each) for each in self._rules["reference_values"]]
            roots = _Roots(self._rules)
        except (KeyError, TypeError, binascii.Error) as error:
            raise self._malformed() from error
        return Present(policies, values, roots, roots)

    def _malformed(self) -> UsageError:
        return UsageError("usage", f"{self._path} is no export of recordings", "Make one with `enclave-cc policy replay --export`.")


class _Roots:
    """Roots and collateral of the file: a `RootSource` and a `CollateralSource`."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        self._roots = [
            TrustedRoot(each["name"], base64.b64decode(each["certificate"], validate=True), bool(each["simulated"]))
            for each in rules["roots"]
        ]
        self._documents = {(each["root"], each["fmspc"], each["ca"]): each["document"] for each in rules["collateral"]}

    def list_roots(self) -> list[TrustedRoot]:
        return self._roots

    def find(self, origin: Origin, root: TrustedRoot, at: int) -> Found | None:
        del at
        document = self._documents.get((root.name, origin.fmspc.hex(), origin.pck_ca))
        return None if document is None else Found.read(Collateral.parse(document))
