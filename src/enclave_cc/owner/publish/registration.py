"""What the KBS must know before an image runs: its KEK, whose signature it needs, and what a host may change.

Policies are single resources that many images share, so that changing them is read, merge, write under a lock.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from enclave_cc.crypto.layer import KEY_SIZE
from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signature import PublicKey
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError, UsageError
from enclave_cc.owner.publish.encrypt import Kek
from enclave_cc.wire.launch.policy import WORDS, LaunchPolicy, check_word
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.oci.signature_policy import SignaturePolicy
from enclave_cc.wire.rcar.uri import ResourcePath, ResourceUri

SIGNATURE_POLICY = "default/security-policy/default"
LAUNCH_POLICY = "default/launch-policy/default"
_LOCK_WAIT = 60.0  # seconds


class ResourceStore(Protocol):
    """The owner's side of a KBS's resources; `owner.kbs.client.AdminClient` is one."""

    def set_resource(self, path: str, value: bytes) -> object: ...

    def get_resource(self, path: str) -> bytes:
        """Raises `UsageError("not-found")`."""
        ...


def parse_key_uri(text: str) -> ResourcePath:
    """`kbs:///REPOSITORY/TYPE/TAG`. Raises `UsageError("usage")`."""
    try:
        uri = ResourceUri.parse(text)
        if uri.plugin == "resource" and len(uri.segments) == 3:
            return ResourcePath(*uri.segments)
    except PeerError as error:
        raise UsageError("usage", error.what) from error
    raise UsageError("usage", f"{text!r} does not name a resource", "Write it as kbs:///REPOSITORY/TYPE/TAG.")


def choose_key_path(image: Reference) -> ResourcePath:
    """A fresh name for an image's KEK: its repository, and 64 random bits."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", image.repository).strip(".-")[:64] or "image"
    return ResourcePath("default", "image-key", f"{name}-{secrets.token_hex(8)}")


def register_kek(store: ResourceStore, path: ResourcePath) -> Kek:
    """The KEK under `path`, made and registered when there is none.

    Raises `UsageError("already-exists")` when something else than a key lies there, and what the KBS answers.
    """
    found = _get(store, str(path))
    if found is None:
        found = Secret.random(KEY_SIZE).reveal()
        store.set_resource(str(path), found)
        if store.get_resource(str(path)) != found:
            raise PeerError("kbs-protocol", f"the KBS does not hold what was stored as {path}")
    if len(found) != KEY_SIZE:
        raise UsageError("already-exists", f"{path} holds {len(found)} bytes, not a key of {KEY_SIZE}", "Name another --key.")
    return Kek(path.uri, Secret(found))


def check_signer(store: ResourceStore, image: Reference, key: PublicKey, *, replace: bool = False) -> dict[str, Any] | None:
    """The signature policy that is to be stored for `key`; None when the present one asks for it already.

    Raises `UsageError("already-exists")` when the policy asks for another key's there, unless `replace`.
    """
    wanted = {
        "type": "sigstoreSigned",
        "keyData": base64.b64encode(key.to_pem()).decode(),
        "signedIdentity": {"type": "matchRepository"},
    }
    policy = _get_json(store, SIGNATURE_POLICY) or {"default": [{"type": "reject"}], "transports": {}}
    scopes = policy.setdefault("transports", {}).setdefault("docker", {})
    present = scopes.get(image.name)
    if present == [wanted]:
        return None
    if present is not None and not replace:
        what = f"the signature policy already says something else about {image.name}"
        raise UsageError("already-exists", what, "Sign with the key it names, or replace it with --replace-signer.")
    scopes[image.name] = [wanted]
    return policy


def register_signer(store: ResourceStore, image: Reference, key: PublicKey, *, replace: bool = False) -> None:
    """Makes the signature policy ask for a signature by `key` on images of this repository; rejects others by default.

    Raises as `check_signer`.
    """
    policy = check_signer(store, image, key, replace=replace)
    if policy is None:
        return
    data = json.dumps(policy, indent=1, sort_keys=True).encode()
    SignaturePolicy.parse(data)  # never store what the agent would refuse
    store.set_resource(SIGNATURE_POLICY, data)


def check_overrides(allow: Sequence[str] | None) -> tuple[str, ...]:
    """The words of `--allow`, sorted, `all` written out. Raises `UsageError("usage")` for what no policy can allow."""
    words = tuple(sorted(WORDS)) if allow is not None and "all" in allow else tuple(sorted(set(allow or ())))
    try:
        return tuple(check_word(word) for word in words)
    except PeerError as error:
        raise UsageError("usage", f"--allow: {error.what}") from error


def register_overrides(store: ResourceStore, image: Reference, allow: Sequence[str] | None) -> None:
    """Sets what a host may override for images of this repository; None leaves it, and makes a policy if there is none.

    Raises `UsageError`: "usage" for an unknown word, "policy-invalid" when the present policy cannot be read.
    """
    words = check_overrides(allow)
    present = _get(store, LAUNCH_POLICY)
    try:
        policy = LaunchPolicy.parse(present) if present is not None else LaunchPolicy()
    except PeerError as error:
        raise UsageError("policy-invalid", f"{LAUNCH_POLICY} in the KBS: {error.what}") from error
    if allow is not None or image.name not in policy.images:
        policy = policy.with_image(image.name, words)
    if policy.encode() != present:
        store.set_resource(LAUNCH_POLICY, policy.encode())


@contextlib.contextmanager
def lock_policies(directory: Path) -> Iterator[None]:
    """One publisher at a time changes the policies of the KBS whose owner's directory this is."""
    path = directory / "publish.lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise EnvironmentFault("environment", f"{path} cannot be opened: {error.strerror}") from error
    with file:
        end = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise EnvironmentFault("deadline", f"another publisher holds {path}") from error
                time.sleep(0.05)
        yield


def _get(store: ResourceStore, path: str) -> bytes | None:
    try:
        return store.get_resource(path)
    except EnclaveCcError as error:
        if error.code in {"not-found", "key-missing"}:
            return None
        raise


def _get_json(store: ResourceStore, path: str) -> dict[str, Any] | None:
    data = _get(store, path)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UsageError("policy-invalid", f"{path} in the KBS is not JSON") from error
    if not isinstance(value, dict):
        raise UsageError("policy-invalid", f"{path} in the KBS is not a JSON object")
    return value
