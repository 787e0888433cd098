"""What a signature over an image says: cosign's simple-signing payload and sigstore's bundle with an in-toto statement.

Parsed only: who signed, and whether that is enough, is decided by the caller's policy *after* the bytes verify.
"""

from __future__ import annotations

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.document import Document, encode_json

SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
# A hint for messages ("another key" or "altered"), never for trust: the SHA-256 of the signer's SubjectPublicKeyInfo.
KEY_ID_ANNOTATION = "io.enclave-cc.signature/key-id"
PAYLOAD_LIMIT = 64 << 10  # bytes
BUNDLE_LIMIT = 256 << 10
_PAYLOAD_TYPE = "cosign container image signature"
_STATEMENT_TYPES = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_PREDICATE_TYPE = "https://sigstore.dev/cosign/sign/v1"


def signature_tag(digest: Digest) -> str:
    """The tag under which cosign keeps the signatures of `digest`, in the same repository."""
    return f"sha256-{digest.hex}.sig"


@record
class Signature:
    """One signature as it was found, not verified: simple signing (cosign's `.sig` tag) or a sigstore bundle.

    `signed` are the bytes that `signature` is over; `content` the ones that say what is signed. `key_id` is the
    signer's own hint, used for messages only.
    """

    signed: bytes
    signature: bytes
    content: bytes
    is_bundle: bool = False
    key_id: str = ""


@record
class SimpleSigning:
    """containers-signature(5) as cosign writes it: this digest, under this `docker-reference`."""

    docker_reference: str
    digest: Digest

    @classmethod
    def parse(cls, data: bytes) -> SimpleSigning:
        """Raises `PeerError("malformed")`; unknown members of `critical` are refused, as the format demands."""
        document = Document.parse(data, "the signed payload", limit=PAYLOAD_LIMIT)
        critical = document.document("critical")
        if set(critical.members()) != {"identity", "image", "type"}:
            critical.fail("it must hold identity, image and type, and nothing else")
        if critical.text("type") != _PAYLOAD_TYPE:
            critical.fail(f"its type {foreign(critical.text('type'))!r} is not {_PAYLOAD_TYPE!r}")
        reference = critical.document("identity").text("docker-reference")
        return cls(reference, Digest.parse(critical.document("image").text("docker-manifest-digest")))

    def encode(self) -> bytes:
        critical = {
            "identity": {"docker-reference": self.docker_reference},
            "image": {"docker-manifest-digest": str(self.digest)},
            "type": _PAYLOAD_TYPE,
        }
        return encode_json({"critical": critical, "optional": None})


@record
class Bundle:
    """Sigstore bundle v0.3 with a DSSE envelope, signed by a plain key: what was signed, and the signatures on it."""

    payload_type: str
    payload: bytes
    signatures: tuple[bytes, ...]

    @classmethod
    def parse(cls, data: bytes) -> Bundle:
        """Raises `PeerError("malformed")`. Certificates and log entries are not read: only keys named by policy count."""
        document = Document.parse(data, "the sigstore bundle", limit=BUNDLE_LIMIT)
        if document.text("mediaType") != media.SIGSTORE_BUNDLE:
            document.fail(f"its mediaType is {foreign(document.text('mediaType'))}")
        envelope = document.document("dsseEnvelope")
        signatures = tuple(item.raw_bytes("sig") for item in envelope.documents("signatures"))
        if not 1 <= len(signatures) <= 16:
            envelope.fail("it must hold 1 to 16 signatures")
        payload_type = envelope.text("payloadType")
        if payload_type != media.IN_TOTO:
            envelope.fail(f"its payloadType is {foreign(payload_type)}")
        return cls(payload_type, envelope.raw_bytes("payload"), signatures)

    def signed_bytes(self) -> bytes:
        """DSSE's pre-authentication encoding, which is what the signatures are over."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(self.payload), self.payload)


@record
class Statement:
    """in-toto statement of `cosign sign`: these digests were signed. It names no repository."""

    digests: tuple[Digest, ...]

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        """Raises `PeerError("malformed")` for other statements than `cosign sign` makes."""
        document = Document.parse(data, "the in-toto statement", limit=BUNDLE_LIMIT)
        if document.text("_type") not in _STATEMENT_TYPES:
            document.fail(f"its type is {foreign(document.text('_type'))}")
        if document.text("predicateType") != _PREDICATE_TYPE:
            raise PeerError("malformed", "the statement is an attestation about the image, not a signature on it")
        subjects = document.documents("subject")
        return cls(tuple(Digest.parse("sha256:" + subject.document("digest").text("sha256")) for subject in subjects))
