"""Debian's skopeo as the judge: it reads and decrypts what we publish, and we run what it encrypts.

Its ocicrypt knows JWE keys but no key providers, so the private options are carried over between a JWE and our key
packet here; cipher, HMAC, private options and annotations are skopeo's own. Packets have upstream's known answer in
tests/unit/wire/oci.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.integration.image.conftest import Agent, Owner

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.owner.publish import registration, sign
from enclave_cc.wire.oci import encryption
from enclave_cc.wire.oci import media_type as media
from enclave_cc.wire.oci.digest import Digest
from enclave_cc.wire.oci.manifest import Descriptor, Manifest, parse_manifest
from enclave_cc.wire.oci.reference import Reference

Skopeo = Callable[..., str]
OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # JWE's RSA-OAEP (RFC 7518 4.3)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def unpad(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def open_jwe(data: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """RFC 7516, general or flattened JSON with one recipient, RSA-OAEP and A256GCM, as ocicrypt makes it."""
    value = json.loads(data)
    wrapped = value.get("encrypted_key") or value["recipients"][0]["encrypted_key"]
    cek = key.decrypt(unpad(wrapped), OAEP)
    sealed = unpad(value["ciphertext"]) + unpad(value["tag"])
    return AESGCM(cek).decrypt(unpad(value["iv"]), sealed, value["protected"].encode())


def make_jwe(plain: bytes, key: rsa.RSAPublicKey) -> bytes:
    protected, cek, iv = b64u(b'{"alg":"RSA-OAEP","enc":"A256GCM"}'), os.urandom(32), os.urandom(12)
    sealed = AESGCM(cek).encrypt(iv, plain, protected.encode())
    value = {"protected": protected, "encrypted_key": b64u(key.encrypt(cek, OAEP)), "iv": b64u(iv)}
    return json.dumps({**value, "ciphertext": b64u(sealed[:-16]), "tag": b64u(sealed[-16:])}).encode()


def diff_ids(layout: Path) -> list[str]:
    """SHA-256 of each layer of a layout's only image, decompressed by gzip(1)."""
    index = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    found = []
    for layer in manifest["layers"]:
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
        plain = subprocess.run(["gzip", "-dc", blobs / layer["digest"][7:]], check=True, capture_output=True).stdout
        found.append(Digest.of(plain))
    return found


def plain_diff_ids(skopeo: Skopeo, source: str) -> list[str]:
    found = json.loads(skopeo("inspect", "--config", "--tls-verify=false", source))["rootfs"]["diff_ids"]
    assert isinstance(found, list)
    return found


def test_skopeo_reads_what_was_published(owner: Owner, layout: str, skopeo: Skopeo, tmp_path: Path) -> None:
    published = owner.publish(layout, "read")
    shown = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{published.reference}"))
    assert shown["Digest"] == published.digest
    assert shown["Layers"] == [layer.digest for layer in published.manifest.layers]
    skopeo("copy", "--src-tls-verify=false", f"docker://{published.reference}", f"oci:{tmp_path}/copy:t")
    copied = json.loads((tmp_path / "copy/index.json").read_text())["manifests"][0]["digest"]
    assert copied == published.digest


def test_skopeo_decrypts_what_was_published(
    owner: Owner, layout: str, skopeo: Skopeo, tmp_path: Path, key: rsa.RSAPrivateKey
) -> None:
    published = owner.publish(layout, "decrypt")
    kek = Secret(owner.resources.values[published.key_uri.removeprefix("kbs:///")])
    layers = []
    for layer in published.manifest.layers:
        private = encryption.LayerEncryption.parse(layer.annotations).packets[0].open(kek)
        jwe = base64.b64encode(make_jwe(private.encode().reveal(), key.public_key())).decode()
        annotations = {**layer.annotations, encryption.KEYS_PREFIX + "jwe": jwe}
        annotations.pop(encryption.PROVIDER)
        layers.append(Descriptor(layer.media_type, layer.digest, layer.size, annotations))
    manifest = Manifest(media.OCI_MANIFEST, published.manifest.config, tuple(layers))
    owner.registry.push_manifest("decrypt", "jwe", manifest.encode(), media.OCI_MANIFEST)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(pem)
    source = f"docker://{owner.server.host}/decrypt:jwe"
    skopeo("copy", "--src-tls-verify=false", "--decryption-key", str(tmp_path / "key.pem"), source, f"oci:{tmp_path}/plain:t")
    decrypted = diff_ids(tmp_path / "plain")
    assert decrypted == plain_diff_ids(skopeo, source)
    assert decrypted[1:] == plain_diff_ids(skopeo, f"oci:{layout}")  # above the marker
    trees = [unpack(f"{tmp_path}/plain:t", tmp_path / "decrypted"), unpack(layout, tmp_path / "source")]
    assert trees[0] == trees[1]


def unpack(image: str, bundle: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What umoci makes of an image: mode, owner, group and content by path."""
    subprocess.run(["umoci", "--log", "error", "unpack", "--image", image, bundle], check=True)
    found = {}
    for path in (bundle / "rootfs", *sorted((bundle / "rootfs").rglob("*"))):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(bundle))] = (about.st_mode, about.st_uid, about.st_gid, content)
    return found


def test_an_image_that_skopeo_encrypted_is_pulled(
    owner: Owner, agent: Agent, layout: str, skopeo: Skopeo, tmp_path: Path, key: rsa.RSAPrivateKey
) -> None:
    target, kek = f"{owner.server.host}/by-skopeo:t", Secret(b"K" * 32)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    recipient = f"jwe:{tmp_path / 'key.pub'}"
    skopeo("copy", "--encryption-key", recipient, "--dest-tls-verify=false", f"oci:{layout}", f"docker://{target}")
    image = Reference.parse(target)
    made = parse_manifest(owner.registry.get_manifest(image.repository, "t")[0])
    assert isinstance(made, Manifest)
    layers = []
    for layer in made.layers:
        jwe = base64.b64decode(layer.annotations[encryption.KEYS_PREFIX + "jwe"])
        private = encryption.PrivateOptions.parse(open_jwe(jwe, key))
        packet = encryption.KeyPacket.seal("kbs:///default/image-key/skopeo", private, kek)
        public_options = base64.b64decode(layer.annotations[encryption.PUBLIC_OPTIONS])
        wrapped = encryption.LayerEncryption(encryption.PublicOptions.parse(public_options), (packet,))
        layers.append(Descriptor(layer.media_type, layer.digest, layer.size, {**layer.annotations, **wrapped.to_annotations()}))
    manifest = Manifest(made.media_type, made.config, tuple(layers))
    owner.registry.push_manifest("by-skopeo", "t", manifest.encode(), made.media_type)
    owner.resources.set_resource("default/image-key/skopeo", kek.reveal())
    sign.sign_image(owner.registry, image, Digest.of(manifest.encode()), owner.key)
    registration.register_signer(owner.resources, image, owner.key.public)
    pulled = agent.pull("by-skopeo:t")
    assert pulled.config.env == ("A=b",)
    assert owner.resources.released.count("default/image-key/skopeo") == 1
    owner.resources.set_resource("default/image-key/skopeo", b"W" * 32)
    with pytest.raises(PeerError) as caught:
        agent.pull("by-skopeo:t")
    assert caught.value.code == "layer-broken"


def test_openssl_verifies_our_signature(owner: Owner, layout: str, tmp_path: Path) -> None:
    """What cosign checks: the annotation is a DER signature over the payload blob, whose digest the manifest names."""
    published = owner.publish(layout, "signed")
    manifest = parse_manifest(owner.registry.get_manifest("signed", f"sha256-{published.digest.hex}.sig")[0])
    assert isinstance(manifest, Manifest)
    (layer,) = manifest.layers
    assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
    payload = owner.registry.get_blob("signed", layer.digest, limit=4096)
    critical = json.loads(payload)["critical"]
    assert critical["identity"]["docker-reference"] == published.reference.name
    assert critical["image"]["docker-manifest-digest"] == published.digest
    (tmp_path / "payload").write_bytes(payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(layer.annotations["dev.cosignproject.cosign/signature"]))
    (tmp_path / "key.pub").write_bytes(owner.key.public.to_pem())
    verify = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "key.pub", "-signature", tmp_path / "signature"]
    assert b"Verified OK" in subprocess.run([*verify, tmp_path / "payload"], check=True, capture_output=True).stdout


def test_archives_and_registries_are_sources_too(owner: Owner, layout: str, skopeo: Skopeo, tmp_path: Path) -> None:
    """Whatever way the image comes in, its layers are the ones that its config names, above a marker of its own."""
    for kind in ("oci-archive", "docker-archive"):
        skopeo("copy", f"oci:{layout}", f"{kind}:{tmp_path}/{kind}.tar:example.com/app:t")
    skopeo("copy", "--format", "v2s2", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{owner.server.host}/source:t")
    plain = plain_diff_ids(skopeo, f"oci:{layout}")
    given = [
        f"{tmp_path}/oci-archive.tar",
        f"oci-archive:{tmp_path}/oci-archive.tar",
        f"{tmp_path}/docker-archive.tar",
        f"docker-archive:{tmp_path}/docker-archive.tar:example.com/app:t",
        f"{owner.server.host}/source:t",
        f"docker://{owner.server.host}/source:t",
        f"oci:{layout}",
    ]
    markers = set()
    for number, source in enumerate(given):
        published = owner.publish(source, f"from{number}")
        marker, *layers = plain_diff_ids(skopeo, f"docker://{published.reference}")
        assert layers == plain
        markers.add(marker)
        assert all(layer.media_type.endswith("tar+gzip+encrypted") for layer in published.manifest.layers)
    assert len(markers) == len(given)
    bare = owner.publish(layout, "bare", marker=False)
    assert plain_diff_ids(skopeo, f"docker://{bare.reference}") == plain
