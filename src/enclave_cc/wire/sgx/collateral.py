"""Quote collateral (QuoteCollateralV3 in its JSON form), and the two signed documents in it.

The members are those of Intel's `sgx_ql_qve_collateral_t`: issuer chains as PEM text, CRLs as hex of DER, TCB info and
QE identity as the exact text that was signed, signatures as hex of r‖s. TCB info v3 and enclave identity v2: Intel SGX
PCS API v4.
"""

from __future__ import annotations

import datetime
import json
import re

from enclave_cc.errors import PeerError
from enclave_cc.record import fields, record

COLLATERAL_LIMIT = 8 << 20
DOCUMENT_LIMIT = 1 << 20
TCB_INFO_VERSION = 3
QE_IDENTITY_VERSION = 2
TCB_COMPONENTS = 16
TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)

_BINARY = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)


@record(kw_only=True)
class Collateral:
    """What a verifier needs beside the quote. Parsed only."""

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    @classmethod
    def parse(cls, data: bytes | str) -> Collateral:
        """Raises `PeerError("malformed")` unless `data` is QuoteCollateralV3 JSON; other members are ignored."""
        if len(data) > COLLATERAL_LIMIT:
            raise PeerError("malformed", f"collateral has at most {COLLATERAL_LIMIT} bytes")
        document = _parse_object(data, "the collateral")
        values: dict[str, str | bytes] = {}
        for member in fields(cls):
            value = document.get(member.name)
            if not isinstance(value, str):
                raise PeerError("malformed", f"the collateral has no {member.name}")
            if member.name in _BINARY:
                try:
                    values[member.name] = bytes.fromhex(value)
                except ValueError as error:
                    raise PeerError("malformed", f"the collateral's {member.name} is not hex") from error
            else:
                values[member.name] = value
        return cls(**values)  # type: ignore[arg-type]

    def encode(self) -> bytes:
        """JSON, indented: people look into it."""
        document = {
            member.name: value.hex() if isinstance(value := getattr(self, member.name), bytes) else value for member in fields(self)
        }
        return json.dumps(document, indent=2).encode("ascii") + b"\n"


@record(kw_only=True)
class TcbLevel:
    """One row of a TCB info: the level holds for platforms whose SVNs all reach these."""

    components: tuple[int, ...]  # 16
    pce_svn: int
    date: str
    status: str
    advisory_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "tcb": {"sgxtcbcomponents": [{"svn": svn} for svn in self.components], "pcesvn": self.pce_svn},
            "tcbDate": self.date,
            "tcbStatus": self.status,
            **({"advisoryIDs": list(self.advisory_ids)} if self.advisory_ids else {}),
        }


@record(kw_only=True)
class TcbInfo:
    """TCB info v3 of SGX: which platform it is about, when it holds, and its levels, best first."""

    issue_date: int
    next_update: int
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    levels: tuple[TcbLevel, ...]

    @classmethod
    def parse(cls, text: str) -> TcbInfo:
        """Raises `PeerError`: "malformed", or "collateral-refused" if it is not the TCB info v3 of an SGX platform."""
        document = _parse_document(text, "TCB info")
        if document.get("id") != "SGX":
            raise PeerError("collateral-refused", "the TCB info is not of SGX")
        if document.get("version") != TCB_INFO_VERSION:
            raise PeerError("collateral-refused", f"the TCB info does not have version {TCB_INFO_VERSION}")
        levels = document.get("tcbLevels")
        if not isinstance(levels, list) or not levels:
            raise PeerError("malformed", "the TCB info has no levels")
        return cls(
            issue_date=_parse_moment(document.get("issueDate")),
            next_update=_parse_moment(document.get("nextUpdate")),
            fmspc=_parse_hex(document.get("fmspc"), 6, "FMSPC"),
            pce_id=_parse_hex(document.get("pceId"), 2, "PCE id"),
            evaluation_number=_parse_uint(document.get("tcbEvaluationDataNumber")),
            levels=tuple(map(_parse_level, levels)),
        )

    def find_level(self, components: bytes, pce_svn: int) -> TcbLevel | None:
        """The first level that the platform reaches: 16 component SVNs and the PCE's, as its PCK certificate says."""
        for level in self.levels:
            if pce_svn >= level.pce_svn and all(have >= need for have, need in zip(components, level.components, strict=True)):
                return level
        return None

    def encode(self) -> str:
        """Compact JSON, as it is signed."""
        return _dump(
            {
                "id": "SGX",
                "version": TCB_INFO_VERSION,
                "issueDate": format_moment(self.issue_date),
                "nextUpdate": format_moment(self.next_update),
                "fmspc": self.fmspc.hex().upper(),
                "pceId": self.pce_id.hex().upper(),
                "tcbType": 0,
                "tcbEvaluationDataNumber": self.evaluation_number,
                "tcbLevels": [level.to_json() for level in self.levels],
            }
        )


@record(kw_only=True)
class QeLevel:
    """One row of a QE identity."""

    isv_svn: int
    date: str
    status: str


@record(kw_only=True)
class QeIdentity:
    """Enclave identity v2 of the quoting enclave. MISCSELECT, ATTRIBUTES and their masks are dcap-qvl's to read."""

    issue_date: int
    next_update: int
    evaluation_number: int
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[QeLevel, ...]

    @classmethod
    def parse(cls, text: str) -> QeIdentity:
        """Raises `PeerError`: "malformed", or "collateral-refused" if it is not the identity v2 of SGX's quoting enclave."""
        document = _parse_document(text, "QE identity")
        if document.get("id") != "QE":
            raise PeerError("collateral-refused", "the QE identity is not of the SGX quoting enclave")
        if document.get("version") != QE_IDENTITY_VERSION:
            raise PeerError("collateral-refused", f"the QE identity does not have version {QE_IDENTITY_VERSION}")
        levels = document.get("tcbLevels")
        if not isinstance(levels, list) or not levels:
            raise PeerError("malformed", "the QE identity has no levels")
        return cls(
            issue_date=_parse_moment(document.get("issueDate")),
            next_update=_parse_moment(document.get("nextUpdate")),
            evaluation_number=_parse_uint(document.get("tcbEvaluationDataNumber")),
            mr_signer=_parse_hex(document.get("mrsigner"), 32, "MRSIGNER"),
            isv_prod_id=_parse_uint(document.get("isvprodid")),
            levels=tuple(map(_parse_qe_level, levels)),
        )

    def find_level(self, isv_svn: int) -> QeLevel | None:
        """The first level that a quoting enclave of this ISVSVN reaches."""
        return next((level for level in self.levels if isv_svn >= level.isv_svn), None)

    def encode(self, *, attributes: bytes, attributes_mask: bytes) -> str:
        """Compact JSON, as it is signed."""
        return _dump(
            {
                "id": "QE",
                "version": QE_IDENTITY_VERSION,
                "issueDate": format_moment(self.issue_date),
                "nextUpdate": format_moment(self.next_update),
                "tcbEvaluationDataNumber": self.evaluation_number,
                "miscselect": "00000000",
                "miscselectMask": "FFFFFFFF",
                "attributes": attributes.hex().upper(),
                "attributesMask": attributes_mask.hex().upper(),
                "mrsigner": self.mr_signer.hex().upper(),
                "isvprodid": self.isv_prod_id,
                "tcbLevels": [
                    {"tcb": {"isvsvn": level.isv_svn}, "tcbDate": level.date, "tcbStatus": level.status} for level in self.levels
                ],
            }
        )


def format_moment(seconds: int) -> str:
    """Seconds since 1970 as YYYY-MM-DDTHH:MM:SSZ."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _dump(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _parse_object(data: bytes | str, name: str) -> dict[str, object]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("malformed", f"{name} is not JSON") from error
    if not isinstance(document, dict):
        raise PeerError("malformed", f"{name} is not a JSON object")
    return document


def _parse_document(text: str, name: str) -> dict[str, object]:
    if len(text) > DOCUMENT_LIMIT:
        raise PeerError("malformed", f"the {name} is too long")
    return _parse_object(text, f"the {name}")


def _parse_level(level: object) -> TcbLevel:
    if not isinstance(level, dict) or not isinstance(level.get("tcb"), dict):
        raise PeerError("malformed", "a TCB level is not an object")
    components = level["tcb"].get("sgxtcbcomponents")
    advisories = level.get("advisoryIDs", [])
    if not isinstance(components, list) or len(components) != TCB_COMPONENTS:
        raise PeerError("malformed", f"a TCB level does not have {TCB_COMPONENTS} components")
    if not isinstance(advisories, list) or not all(isinstance(advisory, str) for advisory in advisories):
        raise PeerError("malformed", "a TCB level's advisories are not strings")
    if level.get("tcbStatus") not in TCB_STATUSES or not isinstance(level.get("tcbDate"), str):
        raise PeerError("malformed", "a TCB level's status or date is not known")
    return TcbLevel(
        components=tuple(_parse_uint(c.get("svn") if isinstance(c, dict) else None) for c in components),
        pce_svn=_parse_uint(level["tcb"].get("pcesvn")),
        date=level["tcbDate"],
        status=level["tcbStatus"],
        advisory_ids=tuple(advisories),
    )


def _parse_qe_level(level: object) -> QeLevel:
    if not isinstance(level, dict) or not isinstance(level.get("tcb"), dict):
        raise PeerError("malformed", "a QE level is not an object")
    if level.get("tcbStatus") not in TCB_STATUSES or not isinstance(level.get("tcbDate"), str):
        raise PeerError("malformed", "a QE level's status or date is not known")
    return QeLevel(isv_svn=_parse_uint(level["tcb"].get("isvsvn")), date=level["tcbDate"], status=level["tcbStatus"])


def _parse_uint(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise PeerError("malformed", "a number in the collateral is not one")
    return value


def _parse_hex(value: object, size: int, name: str) -> bytes:
    try:
        if isinstance(value, str) and len(value) == 2 * size:
            return bytes.fromhex(value)
    except ValueError:
        pass
    raise PeerError("malformed", f"the {name} in the collateral does not have {size} bytes")


def _parse_moment(value: object) -> int:
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise PeerError("malformed", "a moment in the collateral is not written as YYYY-MM-DDTHH:MM:SSZ")
    try:
        return int(datetime.datetime.fromisoformat(value).timestamp())
    except ValueError as error:
        raise PeerError("malformed", "a moment in the collateral does not exist") from error
