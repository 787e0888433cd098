"""The registry client and Debian's docker-registry: plain, basic and token authentication, TLS, restarts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration import registry as servers

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.transport.connections import Body
from enclave_cc.transport.registry import Registry
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.auth import Credentials
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Descriptor, Manifest

OWNER = Credentials(servers.USERNAME, Secret(servers.PASSWORD.encode()))
CONTENT = os.urandom(3 << 20)


def push(registry: Registry, repository: str, tag: str = "t") -> Manifest:
    blob, config = Digest.of(CONTENT), Digest.of(b"{}")
    registry.push_blob(repository, blob, Body.of(CONTENT))
    registry.push_blob(repository, config, Body.of(b"{}"))
    layer = Descriptor(media.OCI_LAYER, blob, len(CONTENT))
    manifest = Manifest(media.OCI_MANIFEST, Descriptor(media.OCI_CONFIG, config, 2), (layer,))
    assert registry.push_manifest(repository, tag, manifest.encode(), media.OCI_MANIFEST) == Digest.of(manifest.encode())
    return manifest


def pull(registry: Registry, repository: str, manifest: Manifest) -> None:
    data, kind, digest = registry.get_manifest(repository, "t")
    assert (data, kind, digest) == (manifest.encode(), media.OCI_MANIFEST, Digest.of(manifest.encode()))
    assert registry.get_manifest(repository, digest)[0] == data
    assert registry.find_manifest(repository, "t") == digest
    layer = manifest.layers[0]
    assert b"".join(registry.open_blob(repository, layer.digest, layer.size)) == CONTENT
    assert registry.get_blob(repository, manifest.config.digest, limit=2) == b"{}"
    assert registry.has_blob(repository, layer.digest)
    assert "t" in registry.list_tags(repository)
    assert registry.list_referrers(repository, digest) == ()


def test_what_was_pushed_is_pulled(server: servers.RegistryServer) -> None:
    registry = Registry(server.host, insecure=True)
    pull(registry, "plain/image", push(registry, "plain/image"))
    assert registry.find_manifest("plain/image", "no-such-tag") is None
    with pytest.raises(PeerError) as caught:
        registry.get_manifest("no/such", "t")
    assert caught.value.code == "image-not-found"
    registry.push_blob("other", Digest.of(CONTENT), Body.of(CONTENT), mount_from="plain/image")
    assert registry.has_blob("other", Digest.of(CONTENT))
    registry.close()


def test_a_blob_of_another_digest_is_refused_by_the_registry(server: servers.RegistryServer) -> None:
    registry = Registry(server.host, insecure=True)
    with pytest.raises(PeerError) as caught:
        registry.push_blob("lie", Digest.of(b"this"), Body.of(b"that"))
    assert caught.value.code == "registry-failed"
    registry.close()


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_authentication(tmp_path: Path, auth: str) -> None:
    with servers.serve(tmp_path / "r", auth=auth) as server:
        registry = Registry(server.host, insecure=True, credentials=OWNER)
        manifest = push(registry, "a/b")
        pull(registry, "a/b", manifest)
        registry.close()
        for credentials in (None, Credentials(servers.USERNAME, Secret(b"wrong"))):
            stranger = Registry(server.host, insecure=True, credentials=credentials)
            with pytest.raises(PeerError) as caught:
                push(stranger, "a/b")
            assert caught.value.code == "registry-denied"
            stranger.close()
        if server.token_server is not None:
            anonymous = Registry(server.host, insecure=True)
            pull(anonymous, "a/b", manifest)
            anonymous.close()
            scopes = [request["scope"] for request in server.token_server.requests]
            assert scopes.count("repository:a/b:pull,push") == 2  # the owner once, the anonymous once, however many requests


def test_tls_with_a_ca_of_ones_own(tmp_path: Path) -> None:
    with servers.serve(tmp_path / "r", tls=True) as server:
        trusting = Registry(server.host, ca_pem=server.ca_pem)
        pull(trusting, "a", push(trusting, "a"))
        trusting.close()
        with pytest.raises(EnvironmentFault, match="not trusted") as caught:
            Registry(server.host).get_manifest("a", "t")
        assert caught.value.code == "registry-unreachable"
        _, another = servers.make_identity(["127.0.0.1"])
        with pytest.raises(EnvironmentFault, match="not trusted"):
            Registry(server.host, ca_pem=another.decode()).get_manifest("a", "t")


def test_a_restarted_registry_is_found_again(tmp_path: Path) -> None:
    with servers.serve(tmp_path / "r") as server:
        registry = Registry(server.host, insecure=True)
        manifest = push(registry, "a")
        server.stop()
        server.start()
        pull(registry, "a", manifest)
        server.stop()
        with pytest.raises(EnvironmentFault) as caught:
            registry.get_manifest("a", "t")
        assert caught.value.code == "registry-unreachable"
        registry.close()


def test_a_registry_that_dies_during_a_blob(tmp_path: Path) -> None:
    with servers.serve(tmp_path / "r") as server:
        registry = Registry(server.host, insecure=True)
        big = os.urandom(8 << 20)
        registry.push_blob("a", Digest.of(big), Body.of(big))
        received = b""
        for number, chunk in enumerate(registry.open_blob("a", Digest.of(big), len(big))):
            received += chunk
            if number == 3:
                server.stop()
                server.start()
        assert Digest.of(received) == Digest.of(big)
        registry.close()
