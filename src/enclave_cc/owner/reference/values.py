"""Reference values: what evidence is compared with, by name, with their origin and expiry.

A name holds either a list, built of members that come and go one by one, or one whole value (a number, text or object),
as Trustee's RVPS stores it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import canonical

MR_ENCLAVE = "sgx_mr_enclave"
MR_SIGNER = "sgx_mr_signer"
APP_MR_ENCLAVE = "sgx_app_mr_enclave"

LAST_SECOND = 253402300799  # of the year 9999, the last that can be shown
_NAME = re.compile(r"[\x21-\x7e]{1,256}\Z")
_HEX_32 = re.compile(r"[0-9a-f]{64}\Z")


ACTIVE, EXPIRED, RETIRED = "active", "expired", "retired"


@record
class Retirement:
    """A value that counts no longer, and is kept so that a denial can say so. `at` is Unix seconds."""

    at: int
    by: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "by": self.by, "reason": self.reason}


@record
class ReferenceValue:
    """One value under a name.

    `member`: one item of the list that the name stands for; otherwise the name's whole value. `source` says where it
    came from, for the owner's eyes. `expires` is Unix seconds. The store adds `version` (how many times the name had
    been changed), `added` (Unix seconds) and `added_by`.
    """

    name: str
    value: Any
    member: bool = True
    expires: int | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    added: int | None = None
    added_by: str = ""
    retired: Retirement | None = None

    def __post_init__(self) -> None:
        if _NAME.match(self.name) is None:
            raise PeerError("malformed", f"{foreign(self.name)!r} cannot be the name of a reference value")

    def state(self, now: float) -> str:
        """`ACTIVE`, `EXPIRED` or `RETIRED`; only active values are seen by policies."""
        if self.retired is not None:
            return RETIRED
        return EXPIRED if self.expires is not None and self.expires <= now else ACTIVE

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "member": self.member,
            "expires": self.expires,
            "source": dict(self.source),
            "version": self.version,
            "added": self.added,
            "added_by": self.added_by,
            "retired": None if self.retired is None else self.retired.to_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> ReferenceValue:
        """Raises `PeerError("malformed")`."""
        if not isinstance(value, Mapping) or "value" not in value:
            raise PeerError("malformed", "a reference value is not an object with a value")
        expires, member, source = value.get("expires"), value.get("member", True), value.get("source", {})
        if not isinstance(member, bool) or not isinstance(source, Mapping):
            raise PeerError("malformed", "a reference value has a member of another type")
        if expires is not None and (type(expires) is not int or not 0 <= expires <= LAST_SECOND):
            raise PeerError("malformed", "a reference value expires at no time in seconds")
        name, version, added = (
            canonical.take_text(value, "name", "the reference value"),
            value.get("version", 0),
            value.get("added"),
        )
        if type(version) is not int or (added is not None and type(added) is not int):
            raise PeerError("malformed", "a reference value has a version or date that is no number")
        retired = _parse_retirement(value.get("retired"))
        return cls(name, value["value"], member, expires, dict(source), version, added, str(value.get("added_by", "")), retired)


def _parse_retirement(value: object) -> Retirement | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or type(value.get("at")) is not int:
        raise PeerError("malformed", "a reference value was retired at no time")
    return Retirement(value["at"], str(value.get("by", "")), str(value.get("reason", "")))


def describe(source: Mapping[str, Any]) -> str:
    """Where a value came from, in words; empty when nothing is known."""
    if "bundle" not in source:
        return ", ".join(f"{name} {value}" for name, value in sorted(source.items()))
    provenance = source.get("provenance")
    built = provenance if isinstance(provenance, Mapping) else {}
    words = [f"{source['bundle']} bundle"]
    words += [f"{label} {source[name]}" for name, label in (("isv_prod_id", "product"), ("isv_svn", "SVN")) if name in source]
    words += [str(source["libos"])] if source.get("libos") else []
    words += [f"signer {str(source['mr_signer'])[:16]}…"] if "mr_signer" in source else []
    words += [f"commit {str(built['commit'])[:12]}"] if "commit" in built else []
    words += [f"built {built['built']}"] if "built" in built else []
    words += [f"statement signed by {source['signed_by']}"] if "signed_by" in source else []
    return ", ".join(words)


class ReferenceSource(Protocol):
    """Where policies find reference values."""

    def query(self, name: str) -> Any:
        """The value of `name` now: a list of its members, or its whole value, or None."""
        ...

    def entries(self, name: str) -> Sequence[ReferenceValue]:
        """The active values behind `name`."""
        ...

    def history(self, name: str) -> Sequence[ReferenceValue]:
        """All of them: retired and expired values too."""
        ...


def combine(entries: Sequence[ReferenceValue]) -> Any:
    """What a policy sees of a name's active values."""
    whole = [entry.value for entry in entries if not entry.member]
    if whole:
        return whole[0]
    return [entry.value for entry in entries] or None


class FixedReferences:
    """A `ReferenceSource` of values that do not change, at one moment (Unix seconds)."""

    def __init__(self, values: Sequence[ReferenceValue], now: float = 0.0) -> None:
        self._now = now
        self._named: dict[str, list[ReferenceValue]] = {}
        for value in values:
            self._named.setdefault(value.name, []).append(value)

    @classmethod
    def of_plain(cls, named: Mapping[str, Any]) -> FixedReferences:
        """Of plain values by name; a list that is not empty is a list of members."""
        values = []
        for name, value in named.items():
            members = isinstance(value, list) and bool(value)
            values += [ReferenceValue(name, item, member=members) for item in (value if members else [value])]
        return cls(values)

    def entries(self, name: str) -> list[ReferenceValue]:
        return [value for value in self.history(name) if value.state(self._now) == ACTIVE]

    def history(self, name: str) -> list[ReferenceValue]:
        return self._named.get(name, [])

    def query(self, name: str) -> Any:
        return combine(self.entries(name))


def parse_bundle_reference(body: bytes, *, by_signer: bool = False) -> list[ReferenceValue]:
    """The values of a bundle's `reference.json`: {role, libos, mr_enclave, mr_signer, isv_prod_id, isv_svn}.

    An agent bundle's MRENCLAVE becomes a member of `sgx_mr_enclave`, which the default attestation policy asks. With
    `by_signer`, its signer, product and least SVN become a member of `sgx_mr_signer` instead, so that later builds of
    the same signer are accepted too. An app bundle never attests to the KBS: its agent is built with its measurement.
    It is kept under `sgx_app_mr_enclave`, for policies that ask, and releases nothing by itself.
    Raises `PeerError("malformed")`.
    """
    return of_bundle(canonical.parse_object(body, "the bundle's reference"), by_signer=by_signer)


def of_bundle(reference: Mapping[str, Any], *, by_signer: bool = False) -> list[ReferenceValue]:
    """As `parse_bundle_reference`, of the parsed object."""
    what = "the bundle's reference"
    role = canonical.take_text(reference, "role", what)
    measurements = {name: canonical.take_text(reference, name, what) for name in ("mr_enclave", "mr_signer")}
    numbers = {name: reference.get(name) for name in ("isv_prod_id", "isv_svn")}
    if any(_HEX_32.match(text) is None for text in measurements.values()):
        raise PeerError("malformed", f"{what} has a measurement that is not 64 lower-case hex digits")
    if any(type(number) is not int or not 0 <= number < 1 << 16 for number in numbers.values()):
        raise PeerError("malformed", f"{what} has an ISVPRODID or ISVSVN that is not a 16-bit number")
    source = {"bundle": role, "libos": reference.get("libos"), **measurements, **numbers}
    if role == "app":
        return [ReferenceValue(APP_MR_ENCLAVE, measurements["mr_enclave"], source=source)]
    if role != "agent":
        raise PeerError("malformed", f"{what} is of role {foreign(role)}; agent and app are known")
    if by_signer:
        signer = {"mr_signer": measurements["mr_signer"], "isv_prod_id": numbers["isv_prod_id"], "min_isv_svn": numbers["isv_svn"]}
        return [ReferenceValue(MR_SIGNER, signer, source=source)]
    return [ReferenceValue(MR_ENCLAVE, measurements["mr_enclave"], source=source)]
