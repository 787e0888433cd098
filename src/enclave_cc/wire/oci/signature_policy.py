"""containers-policy.json(5): which signatures an image needs, by transport and scope.

Read here: `insecureAcceptAnything`, `reject` and `sigstoreSigned` with keys; `signedBy` (GPG) is kept as a
requirement that nothing fulfils. Unknown types, unknown members and empty requirement lists are refused, as
containers/image does. One addition: `signedIdentity {"type": "matchDigestOnly"}` accepts a signature that names no
repository, as those in sigstore bundles.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import NoReturn

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.oci.document import Document
from enclave_cc.wire.oci.reference import Reference

_TRANSPORT = "docker"
_KEY_MEMBERS = ("keyData", "keyDatas", "keyPath", "keyPaths")
_KEYS_LIMIT = 16


@record
class SignedIdentity:
    """How the reference inside a signature must relate to the image asked for."""

    kind: str = "matchRepoDigestOrExact"
    value: str = ""  # dockerReference, dockerRepository or prefix
    signed_prefix: str = ""

    @classmethod
    def read(cls, document: Document) -> SignedIdentity:
        kind = document.text("type")
        members = {
            "matchExact": (),
            "matchRepoDigestOrExact": (),
            "matchRepository": (),
            "matchDigestOnly": (),
            "exactReference": ("dockerReference",),
            "exactRepository": ("dockerRepository",),
            "remapIdentity": ("prefix", "signedPrefix"),
        }.get(kind)
        if members is None:
            _refuse(document, f"signedIdentity has the unknown type {foreign(kind)}")
        _check_members(document, {"type", *members})
        return cls(kind, *(document.text(member) for member in members))

    def accepts(self, image: Reference, signed: str | None) -> bool:
        """Whether a signature that says `signed` (None: it names no repository) fits `image`."""
        if self.kind == "matchDigestOnly":
            return True
        if signed is None:
            return False
        try:
            claim = Reference.parse_hostile(signed)
            if self.kind == "exactReference":
                wanted = Reference.parse_hostile(self.value)
                return claim == wanted and (claim.tag is not None or claim.digest is not None)
            if self.kind == "exactRepository":
                return claim.name == Reference.parse_hostile(self.value).name
            if self.kind == "remapIdentity":
                image = self._remap(image)
        except PeerError:
            return False
        if self.kind == "matchRepository" or (self.kind != "matchExact" and image.digest is not None):
            return claim.name == image.name
        return claim == image.with_default_tag()

    def _remap(self, image: Reference) -> Reference:
        text = str(image)
        rest = text.removeprefix(self.value)
        if rest == text or not (rest == "" or rest[0] in ":@/"):  # a prefix ends where a component does
            return image
        return Reference.parse_hostile(self.signed_prefix + rest)


@record
class AcceptAnything:
    """`insecureAcceptAnything`: the registry, hence the host, decides what runs."""


@record
class Reject:
    """`reject`."""


@record
class SignedByGpg:
    """`signedBy`: nothing fulfils it here."""


@record
class SigstoreSigned:
    """`sigstoreSigned`: a signature by one of these keys, given as PEM or as `kbs://` URIs of PEM."""

    keys: tuple[bytes, ...]
    key_uris: tuple[str, ...]
    identity: SignedIdentity = field(default_factory=SignedIdentity)


Requirement = AcceptAnything | Reject | SignedByGpg | SigstoreSigned


@record
class SignaturePolicy:
    """`default`, and requirement lists by scope for the docker transport."""

    default: tuple[Requirement, ...]
    scopes: Mapping[str, tuple[Requirement, ...]]

    @classmethod
    def parse(cls, data: bytes) -> SignaturePolicy:
        """Raises `PeerError`: "malformed", or "policy-invalid" for what the format or this project does not allow."""
        document = Document.parse(data, "the signature policy")
        _check_members(document, {"default", "transports"})
        if not document.has("default"):
            _refuse(document, "it has no default")
        scopes: dict[str, tuple[Requirement, ...]] = {}
        transport = document.document("transports").document(_TRANSPORT)
        for scope in transport.members():
            scopes[scope] = _read_requirements(transport, scope)
        return cls(_read_requirements(document, "default"), scopes)

    def requirements_for(self, image: Reference) -> tuple[Requirement, ...]:
        """The list of the most specific scope: reference, repository, its parents, host, wildcards, `""`, default."""
        for scope in _scopes_of(image):
            if scope in self.scopes:
                return self.scopes[scope]
        return self.default


def _scopes_of(image: Reference) -> Iterator[str]:
    image = image.with_default_tag()
    if image.digest is not None:
        yield f"{image.name}@{image.digest}"
    if image.tag is not None:
        yield f"{image.name}:{image.tag}"
    parts = image.name.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])
    labels = image.registry.split(":")[0].split(".")
    for start in range(1, len(labels)):
        yield "*." + ".".join(labels[start:])
    yield ""


def _read_requirements(document: Document, member: str) -> tuple[Requirement, ...]:
    requirements = tuple(_read_requirement(item) for item in document.documents(member))
    if not requirements:
        _refuse(document, f"the requirement list of {foreign(member)!r} is empty")
    return requirements


def _read_requirement(document: Document) -> Requirement:
    match document.text("type"):
        case "insecureAcceptAnything":
            _check_members(document, {"type"})
            return AcceptAnything()
        case "reject":
            _check_members(document, {"type"})
            return Reject()
        case "signedBy":
            return SignedByGpg()
        case "sigstoreSigned":
            return _read_sigstore_signed(document)
        case unknown:
            _refuse(document, f"a requirement has the unknown type {foreign(unknown)}")


def _read_sigstore_signed(document: Document) -> SigstoreSigned:
    _check_members(document, {"type", "signedIdentity", *_KEY_MEMBERS})
    given = [member for member in _KEY_MEMBERS if document.has(member)]
    if len(given) != 1:
        _refuse(document, f"sigstoreSigned needs exactly one of {', '.join(_KEY_MEMBERS)}")
    values = document.texts(given[0]) if given[0].endswith("s") else (document.text(given[0]),)
    if not 1 <= len(values) <= _KEYS_LIMIT:
        _refuse(document, f"sigstoreSigned needs 1 to {_KEYS_LIMIT} keys")
    identity = SignedIdentity.read(document.document("signedIdentity")) if document.has("signedIdentity") else SignedIdentity()
    if given[0].startswith("keyData"):
        return SigstoreSigned(tuple(_read_key(document, value) for value in values), (), identity)
    for value in values:
        if not value.startswith("kbs://"):
            _refuse(document, f"keyPath {foreign(value)!r} is not a kbs:// URI; an enclave trusts no file of its host")
    return SigstoreSigned((), values, identity)


def _read_key(document: Document, value: str) -> bytes:
    """containers/image has base64 of PEM here, image-rs the PEM itself; both are read."""
    if "-----BEGIN" in value:
        return value.encode()
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        _refuse(document, "keyData is neither base64 nor PEM")


def _check_members(document: Document, known: set[str]) -> None:
    unknown = set(document.members()) - known
    if unknown:
        _refuse(document, f"unknown member {foreign(sorted(unknown)[0])!r}")


def _refuse(document: Document, what: str) -> NoReturn:
    raise PeerError("policy-invalid", f"{document.name}: {what}")
