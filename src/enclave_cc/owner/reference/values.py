"""Reference values: what evidence is compared with, by name, with their origin and expiry.

A name holds either a list, built of members that come and go one by one, or one whole value (a number, text or object),
as Trustee's RVPS stores it.
"""

from __future__ import annotations

import base64
import binascii
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


@record
class ReferenceValue:
    """One value under a name.

    `member`: one item of the list that the name stands for; otherwise the name's whole value. `source` says where it
    came from, for the owner's eyes. `expires` is Unix seconds.
    """

    name: str
    value: Any
    member: bool = True
    expires: int | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if _NAME.match(self.name) is None:
            raise PeerError("malformed", f"{foreign(self.name)!r} cannot be the name of a reference value")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "member": self.member,
            "expires": self.expires,
            "source": dict(self.source),
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
        return cls(canonical.take_text(value, "name", "the reference value"), value["value"], member, expires, dict(source))


def describe(source: Mapping[str, Any]) -> str:
    """Where a value came from, in words; empty when nothing is known."""
    if "bundle" not in source:
        return ", ".join(f"{name} {value}" for name, value in sorted(source.items()))
    words = [f"{source['bundle']} bundle"]
    words += [f"{label} {source[name]}" for name, label in (("isv_prod_id", "product"), ("isv_svn", "SVN")) if name in source]
    words += [str(source["libos"])] if source.get("libos") else []
    words += [f"signer {str(source['mr_signer'])[:16]}…"] if "mr_signer" in source else []
    return ", ".join(words)


class ReferenceSource(Protocol):
    """Where policies find reference values."""

    def query(self, name: str) -> Any:
        """The value of `name` now: a list of its members, or its whole value, or None."""
        ...

    def entries(self, name: str) -> Sequence[ReferenceValue]:
        """The unexpired values behind `name`."""
        ...


def combine(entries: Sequence[ReferenceValue]) -> Any:
    """What a policy sees of a name's unexpired values."""
    whole = [entry.value for entry in entries if not entry.member]
    if whole:
        return whole[0]
    return [entry.value for entry in entries] or None


def parse_rvps_message(body: bytes) -> list[ReferenceValue]:
    """The values of an RVPS message (Trustee `rvps/README.md`), of which type "sample" is documented:

        {"version":"0.1.0","type":"sample","payload": b64 of {"<name>": <JSON>, ...}}

    A list becomes members, anything else a whole value. Raises `PeerError("malformed")`.
    """
    what = "the RVPS message"
    message = canonical.parse_object(body, what)
    if message.get("version") != "0.1.0":
        raise PeerError("malformed", f"{what} has version {foreign(message.get('version'))}, this is 0.1.0")
    kind = message.get("type")
    if kind != "sample":
        raise PeerError("malformed", f"{what} is of type {foreign(kind)}; 'sample' is known")
    try:
        payload = base64.b64decode(canonical.take_text(message, "payload", what), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PeerError("malformed", f"the payload of {what} is not base64") from error
    values = []
    for name, value in canonical.parse_object(payload, f"the payload of {what}").items():
        if isinstance(value, list):
            values += [ReferenceValue(name, item) for item in value]
            if not value:
                values.append(ReferenceValue(name, [], member=False))
        else:
            values.append(ReferenceValue(name, value, member=False))
    return values


def parse_bundle_reference(body: bytes, *, by_signer: bool = False) -> list[ReferenceValue]:
    """The values of a bundle's `reference.json`: {role, libos, mr_enclave, mr_signer, isv_prod_id, isv_svn}.

    An agent bundle's MRENCLAVE becomes a member of `sgx_mr_enclave`, which the default attestation policy asks. With
    `by_signer`, its signer, product and least SVN become a member of `sgx_mr_signer` instead, so that later builds of
    the same signer are accepted too. An app bundle never attests to the KBS: its agent is built with its measurement.
    It is kept under `sgx_app_mr_enclave`, for policies that ask, and releases nothing by itself.
    Raises `PeerError("malformed")`.
    """
    what = "the bundle's reference"
    reference = canonical.parse_object(body, what)
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
