"""What publishing leaves in the KBS: keys, the signature policy, the launch policy."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.publish import registration
from enclave_cc.wire.launch.policy import LaunchPolicy
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.oci.signature_policy import Reject, SignaturePolicy, SigstoreSigned
from enclave_cc.wire.rcar.uri import ResourcePath

IMAGE = Reference.parse("h:1/a/b:t")
KEY = SigningKey.generate().public


class Store(dict[str, bytes]):
    """Resources in memory."""

    def set_resource(self, path: str, value: bytes) -> None:
        ResourcePath.parse(path)
        self[path] = value

    def get_resource(self, path: str) -> bytes:
        if path not in self:
            raise UsageError("not-found", path)
        return self[path]


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_key_is_made_once(store: Store) -> None:
    path = ResourcePath("default", "image-key", "x")
    first = registration.register_kek(store, path)
    assert (first.uri, len(first.key)) == ("kbs:///default/image-key/x", 32)
    assert registration.register_kek(store, path) == first
    assert registration.register_kek(store, ResourcePath("default", "image-key", "y")).key != first.key
    store["default/image-key/x"] = b"a password, not a key"
    with pytest.raises(UsageError) as caught:
        registration.register_kek(store, path)
    assert caught.value.code == "already-exists"


@pytest.mark.parametrize("repository", ["app", "a/b/c", "a__b", "a" * 200, "0", "x.y-z/_q".replace("_", "")])
def test_key_names_are_resource_paths_and_never_the_same(repository: str) -> None:
    image = Reference("h:1", repository)
    names = {str(registration.choose_key_path(image)) for _ in range(20)}
    assert len(names) == 20
    assert all(ResourcePath.parse(name).type == "image-key" for name in names)


@pytest.mark.parametrize("text", ["", "x", "kbs:///a/b", "kbs+plugin:///a/b/c", "https://h/a/b/c", "kbs:///a/b/c/d"])
def test_what_names_no_resource_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        registration.parse_key_uri(text)
    assert caught.value.code == "usage"
    assert str(registration.parse_key_uri("kbs:///a/b/c")) == "a/b/c"


def test_a_new_policy_rejects_all_others(store: Store) -> None:
    registration.register_signer(store, IMAGE, KEY)
    policy = SignaturePolicy.parse(store[registration.SIGNATURE_POLICY])
    (found,) = policy.requirements_for(IMAGE)
    assert isinstance(found, SigstoreSigned)
    assert found.keys == (KEY.to_pem(),)
    assert found.identity.kind == "matchRepository"
    assert policy.requirements_for(Reference.parse("h:1/a/other")) == (Reject(),)


def test_policies_of_other_images_stay(store: Store) -> None:
    before = {"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"x.y": [{"type": "reject"}]}, "other": {}}}
    store[registration.SIGNATURE_POLICY] = json.dumps(before).encode()
    registration.register_signer(store, IMAGE, KEY)
    after = json.loads(store[registration.SIGNATURE_POLICY])
    assert after["default"] == before["default"]
    assert after["transports"]["docker"].keys() == {"x.y", "h:1/a/b"}


def test_a_signer_is_replaced_only_on_demand(store: Store) -> None:
    registration.register_signer(store, IMAGE, KEY)
    again = store[registration.SIGNATURE_POLICY]
    registration.register_signer(store, IMAGE, KEY)
    assert store[registration.SIGNATURE_POLICY] == again
    other = SigningKey.generate().public
    with pytest.raises(UsageError, match="something else") as caught:
        registration.register_signer(store, IMAGE, other)
    assert caught.value.code == "already-exists"
    registration.register_signer(store, IMAGE, other, replace=True)
    (found,) = SignaturePolicy.parse(store[registration.SIGNATURE_POLICY]).requirements_for(IMAGE)
    assert isinstance(found, SigstoreSigned)
    assert found.keys == (other.to_pem(),)


@pytest.mark.parametrize("present", [b"junk", b"[]"])
def test_a_policy_that_cannot_be_read_is_not_overwritten(store: Store, present: bytes) -> None:
    store[registration.SIGNATURE_POLICY] = store[registration.LAUNCH_POLICY] = present
    for action in (
        lambda: registration.register_signer(store, IMAGE, KEY),
        lambda: registration.register_overrides(store, IMAGE, []),
    ):
        with pytest.raises(UsageError) as caught:
            action()
        assert caught.value.code == "policy-invalid"
    assert set(store.values()) == {present}


def allowed(store: Store, image: str = "h:1/a/b") -> list[str] | None:
    policy = json.loads(store[registration.LAUNCH_POLICY])
    assert (policy["version"], policy["default"]) == (1, {"allow": []})
    LaunchPolicy.parse(store[registration.LAUNCH_POLICY])
    found = policy["images"].get(image)
    return None if found is None else list(found["allow"])


def test_a_host_may_override_what_the_owner_says(store: Store) -> None:
    registration.register_overrides(store, IMAGE, None)
    assert allowed(store) == []
    registration.register_overrides(store, IMAGE, ["volumes", "env", "env"])
    assert allowed(store) == ["env", "volumes"]
    registration.register_overrides(store, IMAGE, None)
    assert allowed(store) == ["env", "volumes"]
    registration.register_overrides(store, Reference.parse("h:1/z"), ["all"])
    everything = ["capabilities", "command", "env", "exec", "stdin", "user", "volumes", "workdir"]
    assert allowed(store, "h:1/z") == everything
    registration.register_overrides(store, IMAGE, ["env:COLOUR", "volumes:/data"])
    assert allowed(store) == ["env:COLOUR", "volumes:/data"]
    registration.register_overrides(store, IMAGE, [])
    assert allowed(store) == []
    with pytest.raises(UsageError, match="'root'"):
        registration.register_overrides(store, IMAGE, ["env", "root"])


def test_publishers_take_turns(store: Store, tmp_path: Path) -> None:
    """Without the lock some of these would overwrite each other's image."""

    def publish(number: int) -> None:
        image = Reference.parse(f"h:1/image{number}")
        with registration.lock_policies(tmp_path):
            registration.register_overrides(store, image, ["env"])

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(store[registration.LAUNCH_POLICY])["images"]) == 12


def test_a_held_lock_is_waited_for_with_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_LOCK_WAIT", 0.1)
    with registration.lock_policies(tmp_path), pytest.raises(EnvironmentFault) as caught:
        with registration.lock_policies(tmp_path):
            pass
    assert caught.value.code == "deadline"
    with pytest.raises(EnvironmentFault), registration.lock_policies(tmp_path / "absent"):
        pass
