"""Where a bundle came from, signed by who built it: an in-toto Statement v1 with a SLSA Provenance v1 predicate.

    subject     the bundle: digests of its manifest (`sha256`) and enclave (`mrEnclave`); its other measurements and, if
                the builder sets one, the end of their validity as annotations
    predicate   source commit, locks, Debian packages and the app bundle it was built with (resolvedDependencies); role,
                LibOS, ISVSVN (externalParameters); builder and dates (runDetails)

in-toto attestation spec v1 (`spec/v1/statement.md`, `resource_descriptor.md`), slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from enclave_cc.crypto.signature import PublicKey
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import PeerError, foreign
from enclave_cc.owner.reference import envelope, values
from enclave_cc.owner.reference.values import ReferenceValue
from enclave_cc.record import record, replace
from enclave_cc.wire.rcar import canonical

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "urn:enclave-cc:bundle:v1"
_WHAT = "the statement"
_MEASUREMENTS = ("mr_signer", "isv_prod_id", "isv_svn", "role", "libos", "debug")


@record
class Dependency:
    """What went into a build: a source tree (`gitCommit`), a lock or another bundle (`sha256`), a package (by its URI)."""

    uri: str
    digest: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"uri": self.uri, **({"digest": dict(self.digest)} if self.digest else {})}


@record(kw_only=True)
class Build:
    """The circumstances of one build; times in Unix seconds."""

    builder: str
    started: int
    finished: int
    dependencies: Sequence[Dependency]


def make_statement(reference: Mapping[str, Any], manifest_sha256: str, build: Build) -> dict[str, Any]:
    """The statement about a bundle with this `reference.json`."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": f"enclave-cc-{reference['role']}",
                "digest": {"sha256": manifest_sha256, "mrEnclave": reference["mr_enclave"]},
                "annotations": {name: reference[name] for name in _MEASUREMENTS},
            }
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {name: reference[name] for name in ("role", "libos", "isv_svn", "debug")},
                "internalParameters": {"enclave_cc": reference["inputs"]["enclave_cc"]},
                "resolvedDependencies": [each.to_json() for each in build.dependencies],
            },
            "runDetails": {
                "builder": {"id": build.builder},
                "metadata": {"startedOn": _show_time(build.started), "finishedOn": _show_time(build.finished)},
            },
        },
    }


def sign(statement: Mapping[str, Any], key: SigningKey, *, expires: int | None = None) -> bytes:
    """The statement in a DSSE envelope. `expires` (Unix seconds) ends the validity of its measurements."""
    subjects = [dict(subject) for subject in statement["subject"]]
    if expires is not None:
        for subject in subjects:
            subject["annotations"] = {**subject["annotations"], "expires": _show_time(expires)}
    return envelope.sign(json.dumps({**statement, "subject": subjects}).encode(), PAYLOAD_TYPE, key)


def verify(body: bytes, keys: Mapping[str, PublicKey], *, by_signer: bool = False) -> list[ReferenceValue]:
    """The reference values of a signed statement; `keys` by the names that the owner gave them.

    1. The envelope is signed by one of `keys` (`envelope.open_envelope`).
    2. The payload is a Statement v1 with SLSA Provenance v1 of one of our bundle builds.
    3. Each subject has the measurements of a bundle.

    Raises `PeerError`: "malformed", "signature-untrusted", "signature-wrong".
    """
    # 1
    opened = envelope.open_envelope(body, PAYLOAD_TYPE, keys.values())
    name = next(name for name, key in keys.items() if key.key_id == opened.key_id)
    # 2
    document = canonical.parse_object(opened.payload, _WHAT)
    for member, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if document.get(member) != wanted:
            raise PeerError("malformed", f"{_WHAT}'s {member} is {foreign(document.get(member))}, wanted is {wanted}")
    predicate = canonical.take_object(document, "predicate", _WHAT)
    definition = canonical.take_object(predicate, "buildDefinition", _WHAT)
    if definition.get("buildType") != BUILD_TYPE:
        raise PeerError("malformed", f"{_WHAT} is of a build of another type: {foreign(definition.get('buildType'))}")
    provenance = _summarize(definition, canonical.take_object(predicate, "runDetails", _WHAT))
    # 3
    subjects = document.get("subject")
    if not isinstance(subjects, list) or not subjects:
        raise PeerError("malformed", f"{_WHAT} has no subject")
    found: list[ReferenceValue] = []
    for subject in subjects:
        digest, annotations = (
            canonical.take_object(subject if isinstance(subject, dict) else {}, each, f"a subject of {_WHAT}")
            for each in ("digest", "annotations")
        )
        expires = _read_time(annotations["expires"]) if "expires" in annotations else None
        reference = {**annotations, "mr_enclave": digest.get("mrEnclave")}
        for value in values.of_bundle(reference, by_signer=by_signer):
            source = {**value.source, "signed_by": name, "key_id": opened.key_id, "provenance": provenance}
            found.append(replace(value, source=source, expires=expires))
    return found


def read_envelope_keys(body: bytes) -> Iterable[str]:
    """The key ids that an envelope names, unverified: to tell whose key is missing."""
    signatures = canonical.parse_object(body, "the envelope").get("signatures")
    return [str(each.get("keyid", "")) for each in signatures if isinstance(each, dict)] if isinstance(signatures, list) else []


def _summarize(definition: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """What `refvals ls` shows: builder, date, source commit, digests of the locks. Foreign text, cut."""
    builder = canonical.take_object(details, "builder", _WHAT)
    metadata = details.get("metadata")
    summary: dict[str, Any] = {"builder": foreign(canonical.take_text(builder, "id", _WHAT))}
    if isinstance(metadata, Mapping) and isinstance(metadata.get("finishedOn"), str):
        summary["built"] = foreign(metadata["finishedOn"])
    dependencies = definition.get("resolvedDependencies")
    inputs = {}
    for each in dependencies if isinstance(dependencies, list) else ():
        if isinstance(each, Mapping) and isinstance(each.get("uri"), str) and isinstance(each.get("digest"), Mapping):
            digest = next((value for value in each["digest"].values() if isinstance(value, str)), "")
            if "gitCommit" in each["digest"]:
                summary["commit"] = foreign(digest)
            else:
                inputs[foreign(each["uri"])] = foreign(digest)
    return summary | ({"inputs": inputs} if inputs else {})


def _show_time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_time(text: object) -> int:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        seconds = -1 if moment is None or moment.tzinfo is None else int(moment.timestamp())
    except (ValueError, OverflowError) as error:
        raise PeerError("malformed", f"{_WHAT} expires at no RFC 3339 time") from error
    if not 0 <= seconds <= values.LAST_SECOND:
        raise PeerError("malformed", f"{_WHAT} expires at no RFC 3339 time")
    return seconds
