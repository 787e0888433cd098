"""Decides whether an image's signatures are enough for the data owner's policy (containers-policy.json(5))."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclave_cc.crypto.signature import PublicKey
from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record
from enclave_cc.wire.oci import signature as formats
from enclave_cc.wire.oci import signature_policy as policies
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.reference import Reference


@record
class Approval:
    """The policy's consent, made by `check_signatures` alone: this image may be any of these manifest digests."""

    image: Reference
    digests: tuple[Digest, ...]
    key_ids: tuple[str, ...]  # of the keys that signed; empty where the policy asks for no signature


def check_signatures(
    policy: policies.SignaturePolicy,
    image: Reference,
    digests: Sequence[Digest],
    signatures: Sequence[formats.Signature],
    fetch_key: Callable[[str], bytes],
) -> Approval:
    """Holds the policy's requirements for `image` against `signatures`.

    `digests` are those whose content leads to the image by a chain of digests: the manifest's, and the index's it was
    selected from. `fetch_key` gets a public key by its `kbs://` URI.

    1. The requirements of the most specific scope apply, and every one of them must hold.
    2. A key that the requirement names verifies the signature, before its content is read.
    3. The content says a digest out of `digests`.
    4. The content's reference fits `image` by the requirement's `signedIdentity`.

    Raises `PeerError`: "signature-missing" (there is none), "signature-untrusted" (none by a named key, or the policy
    rejects), "signature-wrong" (by a named key, but over something else; or altered), "policy-invalid".
    """
    key_ids: list[str] = []
    for requirement in policy.requirements_for(image):  # 1
        match requirement:
            case policies.AcceptAnything():
                continue
            case policies.Reject():
                raise PeerError("signature-untrusted", f"the signature policy rejects images of {image.name}")
            case policies.SignedByGpg():
                raise PeerError("policy-invalid", "the signature policy asks for signedBy (GPG); sigstoreSigned is needed here")
            case policies.SigstoreSigned():
                key_ids.append(_check_requirement(requirement, image, digests, signatures, fetch_key))
    return Approval(image, tuple(digests), tuple(key_ids))


def _check_requirement(
    requirement: policies.SigstoreSigned,
    image: Reference,
    digests: Sequence[Digest],
    signatures: Sequence[formats.Signature],
    fetch_key: Callable[[str], bytes],
) -> str:
    if not signatures:
        raise PeerError("signature-missing", f"{image} is not signed")
    keys = [PublicKey.from_pem(pem) for pem in requirement.keys]
    keys += [PublicKey.from_pem(fetch_key(uri)) for uri in requirement.key_uris]
    untrusted = PeerError("signature-untrusted", f"no signature of {image} is by a key that the policy names")
    wrong: PeerError | None = None
    for signature in signatures:
        key = _find_signer(keys, signature)  # 2
        if key is None:
            if signature.key_id in {key.key_id for key in keys}:
                wrong = wrong or PeerError("signature-wrong", f"a signature of {image} was altered")
            continue
        try:
            _check_content(requirement.identity, image, digests, signature)
        except PeerError as error:
            wrong = wrong or error
            continue
        return key.key_id
    raise wrong or untrusted


def _find_signer(keys: Sequence[PublicKey], signature: formats.Signature) -> PublicKey | None:
    for key in keys:
        try:
            key.verify(signature.signature, signature.signed)
        except PeerError:
            continue
        return key
    return None


def _check_content(
    identity: policies.SignedIdentity, image: Reference, digests: Sequence[Digest], signature: formats.Signature
) -> None:
    said: tuple[Digest, ...]
    reference: str | None
    try:
        if signature.is_bundle:
            said, reference = formats.Statement.parse(signature.content).digests, None
        else:
            payload = formats.SimpleSigning.parse(signature.content)
            said, reference = (payload.digest,), payload.docker_reference
    except PeerError as error:
        raise PeerError("signature-wrong", f"a signature of {image} is by a trusted key, but {error.what}") from error
    if not set(said) & set(digests):  # 3
        raise PeerError("signature-wrong", f"a signature under {image} is over another image")
    if not identity.accepts(image, reference):  # 4
        of = f"of {foreign(reference)!r}" if reference is not None else "of no repository in particular"
        raise PeerError("signature-wrong", f"the signature under {image} is {of}, which {identity.kind} does not accept")


def asks_for_signatures(policy: policies.SignaturePolicy, image: Reference) -> bool:
    """Whether any requirement for `image` wants a signature; if not, none need be fetched."""
    return any(isinstance(requirement, policies.SigstoreSigned) for requirement in policy.requirements_for(image))
