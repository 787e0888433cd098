"""Publish, then pull as the agent does: what is accepted, what is refused, what the cache saves and what it does not."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration import registry as servers
from tests.integration.image.conftest import Agent, Owner

from enclave_cc.crypto.secret import Secret
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.enclave.image.pull import PulledImage
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.owner.publish import registration, sign
from enclave_cc.transport.connections import Body
from enclave_cc.transport.registry import Registry
from enclave_cc.transport.registry_config import RegistryConfig
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.auth import Credentials
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.encryption import KeyPacket, LayerEncryption
from enclave_cc.wire.oci.manifest import Descriptor, Index, Manifest, Platform
from enclave_cc.wire.oci.reference import Reference
from enclave_cc.wire.sealed.block import Role

POLICY = registration.SIGNATURE_POLICY


def refused(code: str, action: Callable[[], object]) -> None:
    with pytest.raises((PeerError, EnvironmentFault)) as caught:
        action()
    assert caught.value.code == code, str(caught.value)


def sealed_files(agent: Agent) -> list[str]:
    return sorted(path.name for path in agent.cache.directory.rglob("*.sealed"))


def test_a_published_image_is_pulled(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "app")
    pulled = agent.pull("app")
    assert pulled.manifest_digest == published.digest
    assert (pulled.config.cmd, pulled.config.env, pulled.config.user) == (("/etc/same",), ("A=b",), "7:8")
    assert pulled.signers == (owner.key.public.key_id,)
    assert len(pulled.rootfs.layers) >= 3
    assert all({"waiting", "pulling", "done"} <= stages for stages in agent.stages.values())
    assert len(agent.stages) == len(published.manifest.layers)
    content = b"".join(path.read_bytes() for path in agent.cache.directory.rglob("*") if path.is_file())
    assert b"content 0" not in content


def test_a_cached_image_needs_its_key_and_its_signature_all_the_same(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "cached")
    first = agent.pull("cached")
    path = published.key_uri.removeprefix("kbs:///")
    owner.resources.released.clear()
    again = agent.pull("cached")
    assert again.rootfs == first.rootfs
    assert {stage for stages in agent.stages.values() for stage in stages} == {"cached"}
    assert owner.resources.released == [POLICY, path]
    key = owner.resources.values.pop(path)
    refused("key-missing", lambda: agent.pull("cached"))
    owner.resources.values[path] = bytes(32)
    refused("layer-broken", lambda: agent.pull("cached"))
    owner.resources.values[path] = key
    policy = owner.resources.values.pop(POLICY)
    refused("signature-policy-missing", lambda: agent.pull("cached"))
    owner.resources.values[POLICY] = policy
    owner.server.tag_path("cached", f"sha256-{published.digest.hex}.sig").unlink()
    refused("signature-missing", lambda: agent.pull("cached"))


def test_who_has_no_key_gets_nothing_from_the_cache(owner: Owner, agent: Agent, layout: str) -> None:
    """Somebody else's image, rightly signed, lists the same ciphertext as plain layers: the cache does not know them."""
    published = owner.publish(layout, "victim")
    agent.pull("victim")
    layers = tuple(
        Descriptor(layer.media_type.removesuffix(media.ENCRYPTED), layer.digest, layer.size) for layer in published.manifest.layers
    )
    stolen = Manifest(media.OCI_MANIFEST, published.manifest.config, layers)
    for layer in layers:
        owner.registry.push_blob("thief", layer.digest, Body.of(b""), mount_from="victim")
    owner.registry.push_blob("thief", stolen.config.digest, Body.of(b""), mount_from="victim")
    digest = owner.registry.push_manifest("thief", "t", stolen.encode(), media.OCI_MANIFEST)
    thief = Reference.parse(f"{owner.server.host}/thief:t")
    sign.sign_image(owner.registry, thief, digest, owner.key)
    registration.register_signer(owner.resources, thief, owner.key.public)
    refused("layer-broken", lambda: agent.pull("thief:t"))


def test_one_ciphertext_byte_changed_in_the_registry(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "flipped")
    path = owner.server.blob_path(published.manifest.layers[1].digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    refused("digest-mismatch", lambda: agent.pull("flipped"))
    path.write_bytes(whole[:-1])
    refused("digest-mismatch", lambda: agent.pull("flipped"))
    path.write_bytes(whole)
    agent.pull("flipped")


def test_signatures_by_others_and_over_others(owner: Owner, agent: Agent, layout: str) -> None:
    first = owner.publish(layout, "signed:one")
    second = owner.publish(layout, "signed:two", layers="0")
    image = first.reference
    tags = [owner.server.tag_path("signed", f"sha256-{p.digest.hex}.sig") for p in (first, second)]
    tags[0].write_text(tags[1].read_text())
    refused("signature-wrong", lambda: agent.pull("signed:one"))
    tags[0].unlink()
    refused("signature-missing", lambda: agent.pull("signed:one"))
    sign.sign_image(owner.registry, image, first.digest, SigningKey.generate())
    refused("signature-untrusted", lambda: agent.pull("signed:one"))
    sign.sign_image(owner.registry, image, first.digest, owner.key)  # beside the stranger's
    agent.pull("signed:one")


def test_an_altered_signature_is_wrong_not_strange(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "altered")
    tag = sign.formats.signature_tag(published.digest)
    data, _, _ = owner.registry.get_manifest("altered", tag)
    value = json.loads(data)
    annotations = value["layers"][0]["annotations"]
    signature = annotations[sign.formats.SIGNATURE_ANNOTATION]
    annotations[sign.formats.SIGNATURE_ANNOTATION] = signature[:20] + ("A" if signature[20] != "A" else "B") + signature[21:]
    owner.registry.push_manifest("altered", tag, json.dumps(value).encode(), media.OCI_MANIFEST)
    refused("signature-wrong", lambda: agent.pull("altered"))
    annotations[sign.formats.SIGNATURE_ANNOTATION] = "not base64"
    owner.registry.push_manifest("altered", tag, json.dumps(value).encode(), media.OCI_MANIFEST)
    refused("signature-wrong", lambda: agent.pull("altered"))


def test_the_default_rejects(owner: Owner, agent: Agent, layout: str) -> None:
    owner.publish(layout, "known")
    owner.push(layout, "unknown")
    refused("signature-untrusted", lambda: agent.pull("unknown"))


def test_a_plain_image_runs_when_the_policy_asks_for_nothing(owner: Owner, agent: Agent, layout: str) -> None:
    owner.push(layout, "plain")
    owner.resources.values[POLICY] = b'{"default": [{"type": "insecureAcceptAnything"}]}'
    pulled = agent.pull("plain")
    assert pulled.signers == ()
    assert owner.resources.released == [POLICY]


def test_an_index_signed_as_a_whole_or_by_its_manifest(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "multi:amd")
    size = len(published.manifest.encode())
    descriptor = Descriptor(media.OCI_MANIFEST, published.digest, size, platform=Platform("linux", "amd64"))
    index = Index(media.OCI_INDEX, (descriptor,)).encode()
    digest = owner.registry.push_manifest("multi", "all", index, media.OCI_INDEX)
    assert agent.pull("multi:all").manifest_digest == published.digest  # the manifest is signed
    owner.server.tag_path("multi", f"sha256-{published.digest.hex}.sig").unlink()
    refused("signature-missing", lambda: agent.pull("multi:all"))
    sign.sign_image(owner.registry, Reference.parse(f"{owner.server.host}/multi:all"), digest, owner.key)
    assert agent.pull("multi:all").manifest_digest == published.digest  # the index is
    assert agent.pull(f"{owner.server.host}/multi@{digest}").manifest_digest == published.digest
    refused("digest-mismatch", lambda: _pull_pinned_but_moved(owner, agent, digest))


def _pull_pinned_but_moved(owner: Owner, agent: Agent, digest: Digest) -> None:
    """The registry serves other bytes under a digest that the reference pins."""
    path = owner.server.blob_path(digest)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"amd64", b"amd46"))
    try:
        agent.pull(f"{owner.server.host}/multi@{digest}")
    finally:
        path.write_bytes(whole)


def test_a_bundle_of_cosign_3_counts_where_the_policy_says_so(owner: Owner, agent: Agent, layout: str) -> None:
    """cosign 3 stores a sigstore bundle as a referrer; this registry has no referrers API, so under its tag."""
    published = owner.publish(layout, "bundled")
    owner.server.tag_path("bundled", f"sha256-{published.digest.hex}.sig").unlink()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": published.digest.hex}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    content = json.dumps(statement).encode()
    signature = owner.key.sign(sign.formats.Bundle(media.IN_TOTO, content, ()).signed_bytes())
    envelope = {
        "payload": base64.b64encode(content).decode(),
        "payloadType": media.IN_TOTO,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    material = {"publicKey": {"hint": "x"}}
    bundle = json.dumps({"mediaType": media.SIGSTORE_BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode()
    for blob in (bundle, b"{}"):
        owner.registry.push_blob("bundled", Digest.of(blob), Body.of(blob))
    layer = Descriptor(media.SIGSTORE_BUNDLE, Digest.of(bundle), len(bundle))
    subject = Descriptor(media.OCI_MANIFEST, published.digest, len(published.manifest.encode()))
    empty = Descriptor(media.OCI_EMPTY, Digest.of(b"{}"), 2)
    referrer = Manifest(media.OCI_MANIFEST, empty, (layer,), {}, media.SIGSTORE_BUNDLE, subject).encode()
    digest = owner.registry.push_manifest("bundled", str(Digest.of(referrer)), referrer, media.OCI_MANIFEST)
    entry = Descriptor(media.OCI_MANIFEST, digest, len(referrer), artifact_type=media.SIGSTORE_BUNDLE)
    tag = f"sha256-{published.digest.hex}"
    owner.registry.push_manifest("bundled", tag, Index(media.OCI_INDEX, (entry,)).encode(), media.OCI_INDEX)
    refused("signature-wrong", lambda: agent.pull("bundled"))  # it names no repository, and the policy wants one
    policy = json.loads(owner.resources.values[POLICY])
    policy["transports"]["docker"][published.reference.name][0]["signedIdentity"] = {"type": "matchDigestOnly"}
    owner.resources.values[POLICY] = json.dumps(policy).encode()
    assert agent.pull("bundled").signers == (owner.key.public.key_id,)


def test_a_layers_key_packet_cannot_be_moved_to_another_layer(owner: Owner, agent: Agent, layout: str) -> None:
    """Rightly signed by its owner, wrongly assembled: the HMAC says so."""
    published = owner.publish(layout, "swapped")
    first, second, *rest = published.manifest.layers
    swapped = (
        Descriptor(first.media_type, first.digest, first.size, second.annotations),
        Descriptor(second.media_type, second.digest, second.size, first.annotations),
        *rest,
    )
    manifest = Manifest(media.OCI_MANIFEST, published.manifest.config, swapped)
    digest = owner.registry.push_manifest("swapped", "t", manifest.encode(), media.OCI_MANIFEST)
    sign.sign_image(owner.registry, published.reference, digest, owner.key)
    refused("layer-broken", lambda: agent.pull("swapped:t"))
    assert len(sealed_files(agent)) <= len(rest)


def test_a_second_key_packet_is_tried(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "two-keys")
    layers = []
    for layer in published.manifest.layers:
        encryption = LayerEncryption.parse(layer.annotations)
        absent = KeyPacket("kbs:///default/image-key/gone", encryption.packets[0].wrapped, encryption.packets[0].iv)
        both = LayerEncryption(encryption.public, (absent, *encryption.packets)).to_annotations()
        layers.append(Descriptor(layer.media_type, layer.digest, layer.size, both))
    manifest = Manifest(media.OCI_MANIFEST, published.manifest.config, tuple(layers))
    digest = owner.registry.push_manifest("two-keys", "t", manifest.encode(), media.OCI_MANIFEST)
    sign.sign_image(owner.registry, published.reference, digest, owner.key)
    agent.pull("two-keys:t")


def test_many_pulls_of_the_same_image_at_once(owner: Owner, agent: Agent, layout: str) -> None:
    owner.publish(layout, "busy")
    found: list[PulledImage] = []
    wrong: list[BaseException] = []

    def pull() -> None:
        try:
            found.append(agent.pull("busy"))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    # Layers are sealed once. The tree over them is cheap: pulls that end together may each make one, with a spill of its own.
    sealed = [{blob.id for blob in pulled.rootfs.layers if blob.role is Role.LAYER} for pulled in found]
    assert sealed == [sealed[0]] * len(found)


def test_a_failed_layer_stops_the_others_and_leaves_nothing(owner: Owner, agent: Agent, layout: str) -> None:
    published = owner.publish(layout, "half")
    for layer in published.manifest.layers:
        owner.server.blob_path(layer.digest).write_bytes(b"")
    refused("digest-mismatch", lambda: agent.pull("half"))
    assert sealed_files(agent) == []


def test_time_is_up(owner: Owner, agent: Agent, layout: str) -> None:
    owner.publish(layout, "slow")
    refused("deadline", lambda: agent.pull("slow", deadline=0.0))
    assert sealed_files(agent) == []


def test_a_registry_that_is_down_and_a_mirror_that_is_not(owner: Owner, agent: Agent, layout: str) -> None:
    owner.publish(layout, "mirrored")
    gone = Reference.parse("127.0.0.1:1/mirrored")
    registration.register_signer(owner.resources, gone, owner.key.public)
    policy = json.loads(owner.resources.values[POLICY])
    policy["transports"]["docker"][gone.name][0]["signedIdentity"] = {
        "type": "exactRepository",
        "dockerRepository": f"{owner.server.host}/mirrored",
    }
    owner.resources.values[POLICY] = json.dumps(policy).encode()
    refused("registry-unreachable", lambda: agent.pull(str(gone)))
    hosts = frozenset({owner.server.host, gone.registry})
    config = RegistryConfig(insecure=hosts, mirrors={gone.registry: (owner.server.host,)})
    agent.pull(str(gone), registries=config)


CREDENTIAL = "default/credential/default"
Private = Callable[..., tuple[str, RegistryConfig]]


def keep_credential(owner: Owner, key: str) -> None:
    auth = base64.b64encode(f"{servers.USERNAME}:{servers.PASSWORD}".encode()).decode()
    owner.resources.values[CREDENTIAL] = json.dumps({"auths": {key: {"auth": auth}}}).encode()


@pytest.fixture
def private(owner: Owner, tmp_path: Path, layout: str) -> Iterator[Private]:
    """Starts a registry that wants a password and holds an image; its host, and how the node has it reached."""
    opened = contextlib.ExitStack()

    def serve(*, auth: str = "basic", tls: bool = False) -> tuple[str, RegistryConfig]:
        server = opened.enter_context(servers.serve(tmp_path / "private", auth=auth, tls=tls))
        secret = Credentials(servers.USERNAME, Secret(servers.PASSWORD.encode()))
        registry = Registry(server.host, insecure=not tls, credentials=secret, ca_pem=server.ca_pem, deadline=10)
        opened.callback(registry.close)
        dataclasses.replace(owner, server=server, registry=registry).publish(layout, "a/b")
        insecure = frozenset() if tls else frozenset({server.host})
        return server.host, RegistryConfig(insecure=insecure, ca_pem=server.ca_pem, deadline=10)

    with opened:
        yield serve


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_credential_for_the_node_to_see_opens_a_private_registry(owner: Owner, agent: Agent, private: Private, auth: str) -> None:
    """It comes from the KBS, once, when asked for."""
    host, registries = private(auth=auth)
    if auth == "basic":
        refused("registry-denied", lambda: agent.pull(f"{host}/a/b", registries=registries))
    keep_credential(owner, f"http://{host}")
    owner.resources.released.clear()
    agent.pull(f"{host}/a/b", registries=registries)
    assert owner.resources.released.count(CREDENTIAL) == 1


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_secret_credential_is_not_sent_in_clear(owner: Owner, agent: Agent, private: Private, auth: str) -> None:
    """HOST-015: the host says that the registry speaks plain HTTP."""
    host, registries = private(auth=auth)
    keep_credential(owner, host)
    with pytest.raises(PeerError) as caught:
        agent.pull(f"{host}/a/b", registries=registries)
    assert caught.value.code == "registry-denied"
    assert "plain HTTP" in caught.value.what


def test_a_secret_credential_is_not_shown_to_a_ca_of_the_node(owner: Owner, agent: Agent, private: Private) -> None:
    """HOST-015: the host adds a CA, and with it stands in the middle."""
    host, registries = private(tls=True)
    keep_credential(owner, f"https://{host}")
    refused("registry-unreachable", lambda: agent.pull(f"{host}/a/b", registries=registries))
    keep_credential(owner, f"http://{host}")
    agent.pull(f"{host}/a/b", registries=registries)


def test_the_cache_may_go_at_any_time(owner: Owner, agent: Agent, layout: str) -> None:
    owner.publish(layout, "gone")
    agent.pull("gone")
    shutil.rmtree(agent.cache.directory / "index")
    (agent.cache.directory / "index").mkdir()
    agent.pull("gone")
