"""Ingestion of one layer: digest, HMAC and diffID all hold, or nothing remains."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from enclave_cc.crypto.layer import LayerCipher
from enclave_cc.crypto.secret import Secret
from enclave_cc.enclave.image.layer import Layer, ingest_layer
from enclave_cc.enclave.rootfs import sealed_writer
from enclave_cc.errors import EnclaveCcError, EnvironmentFault, PeerError
from enclave_cc.wire.sealed.reader import BlockOpener

CHUNK = 64 * 1024
CANARY = b"CANARY-of-plaintext"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def make_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, body in {"a/small": CANARY, "a/big": os.urandom(700_000) + CANARY * 1000, "empty": b""}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


TAR = make_tar()


@dataclass(frozen=True)
class Sent:
    """A layer as a registry has it, and what the verified documents say about it."""

    body: bytes
    digest: str
    size: int
    diff_id: str
    media_type: str
    key: bytes | None = None
    nonce: bytes = bytes(16)
    hmac: bytes = b""


def send(body: bytes, media_type: str, *, encrypt: bool) -> Sent:
    if not encrypt:
        return Sent(body, sha256(body), len(body), sha256(TAR), media_type)
    key, nonce = os.urandom(32), os.urandom(16)
    body = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor().update(body)
    mac = __import__("hmac").digest(key, body, "sha256")
    return Sent(body, sha256(body), len(body), sha256(TAR), media_type + "+encrypted", key, nonce, mac)


OCI = "application/vnd.oci.image.layer.v1.tar"
FORMS = {
    "tar": (TAR, OCI),
    "gzip": (gzip.compress(TAR), OCI + "+gzip"),
    "zstd": (zstandard.ZstdCompressor().compress(TAR), OCI + "+zstd"),
}


def ingest(sent: Sent, directory: Path, **options: Any) -> Layer:
    body = sent.body
    options.setdefault("chunks", (body[at : at + CHUNK] for at in range(0, len(body), CHUNK)))
    cipher = LayerCipher(Secret(sent.key), sent.nonce, sent.hmac) if sent.key else None
    options.setdefault("progress", lambda done: None)
    return ingest_layer(
        digest=sent.digest, size=sent.size, diff_id=sent.diff_id, media_type=sent.media_type, cipher=cipher,
        directory=directory, **options,
    )  # fmt: skip


def read_back(layer: Layer, directory: Path) -> bytes:
    opener = BlockOpener(layer.descriptor)
    sealed = (directory / "blobs" / layer.descriptor.file_name).read_bytes()
    stride = opener.stride
    return b"".join(opener.open(i, sealed[i * stride : (i + 1) * stride]) for i in range(layer.descriptor.block_count))


def refused(sent: Sent, directory: Path, **options: Any) -> EnclaveCcError:
    before = threading.active_count()
    with pytest.raises(EnclaveCcError) as caught:
        ingest(sent, directory, **options)
    assert list((directory / "blobs").iterdir()) == []
    assert threading.active_count() == before
    return caught.value


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_sealed_whole(form: str, encrypt: bool, tmp_path: Path) -> None:
    seen: list[int] = []
    sent = send(*FORMS[form], encrypt=encrypt)
    layer = ingest(sent, tmp_path, progress=seen.append)
    assert read_back(layer, tmp_path) == TAR
    assert {entry.path: entry.size for entry in layer.entries} == {b"a/small": 19, b"a/big": 719_000, b"empty": 0}
    assert (layer.digest, layer.diff_id, layer.descriptor.plain_size) == (sent.digest, sent.diff_id, len(TAR))
    assert seen == sorted(seen) and seen[-1] == sent.size
    (blob,) = (tmp_path / "blobs").iterdir()
    assert CANARY not in blob.read_bytes() and blob.stat().st_size == layer.descriptor.sealed_size


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at", [0, 5, 600, -1])
def test_a_changed_byte_is_the_registrys_fault(form: str, encrypt: bool, at: int, tmp_path: Path) -> None:
    sent = send(*FORMS[form], encrypt=encrypt)
    body = bytearray(sent.body)
    body[at] ^= 1
    assert refused(replace(sent, body=bytes(body)), tmp_path).code == "digest-mismatch"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b[:100], lambda b: b * 2])
def test_another_size_is_the_registrys_fault(form: str, change: Any, tmp_path: Path) -> None:
    sent = send(*FORMS[form], encrypt=False)
    assert refused(replace(sent, body=change(sent.body)), tmp_path).code == "digest-mismatch"


def test_an_endless_layer_is_cut_at_its_size(tmp_path: Path) -> None:
    sent = send(*FORMS["tar"], encrypt=False)
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += CHUNK
            yield bytes(CHUNK)

    assert refused(sent, tmp_path, chunks=endless()).code == "digest-mismatch"
    assert taken <= sent.size + CHUNK


@pytest.mark.parametrize("form", FORMS)
def test_hmac_wrong_key_and_wrong_nonce(form: str, tmp_path: Path) -> None:
    sent = send(*FORMS[form], encrypt=True)
    for changed in (replace(sent, hmac=bytes(32)), replace(sent, key=bytes(32))):
        error = refused(changed, tmp_path)
        assert error.code == "layer-broken" and "HMAC" in error.what
    # the nonce is not covered by ocicrypt's HMAC: what is behind it finds out
    assert refused(replace(sent, nonce=bytes(16)), tmp_path).code == "layer-broken"


def test_an_hmac_that_fails_is_named_although_unpacking_failed_first(tmp_path: Path) -> None:
    sent = send(os.urandom(300_000), OCI + "+gzip", encrypt=True)
    assert "HMAC" in refused(replace(sent, hmac=bytes(32)), tmp_path).what


@pytest.mark.parametrize("form", FORMS)
def test_another_diff_id(form: str, tmp_path: Path) -> None:
    error = refused(replace(send(*FORMS[form], encrypt=True), diff_id=sha256(b"")), tmp_path)
    assert error.code == "layer-broken" and "unpacks to" in error.what


@pytest.mark.parametrize("body", [gzip.compress(TAR)[:-9], FORMS["zstd"][0][:-9], b"not a tar" * 1000, b""])
def test_signed_rubbish_is_the_publishers_fault(body: bytes, tmp_path: Path) -> None:
    assert refused(send(body, OCI, encrypt=False), tmp_path).code == "layer-broken"


def test_a_bomb(tmp_path: Path) -> None:
    zeros = zstandard.ZstdCompressor().compress(bytes(1 << 27))
    error = refused(send(zeros, OCI, encrypt=False), tmp_path, plain_limit=1 << 20)
    assert error.code == "layer-broken" and "1048576" in error.what


@pytest.mark.parametrize("encrypt", [False, True])
def test_a_key_where_none_belongs_and_none_where_one_does(encrypt: bool, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    sent = replace(send(*FORMS["tar"], encrypt=encrypt), media_type=OCI + ("" if encrypt else "+encrypted"))
    assert refused(sent, tmp_path).code == "layer-broken"


def test_a_connection_that_breaks(tmp_path: Path) -> None:
    sent = send(*FORMS["gzip"], encrypt=False)

    def breaking() -> Iterator[bytes]:
        yield sent.body[:CHUNK]
        raise EnvironmentFault("registry-unreachable", "gone")

    assert refused(sent, tmp_path, chunks=breaking()).code == "registry-unreachable"


def test_a_full_disk_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = send(*FORMS["tar"], encrypt=False)
    sent = replace(sent, size=1 << 40)
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield sent.body
        while True:
            taken += 1
            yield bytes(CHUNK)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed_writer.os, "write", full)
    assert refused(sent, tmp_path, chunks=endless()).code == "disk-full"
    assert taken < 1000


def test_the_same_bytes_are_never_sealed_alike(tmp_path: Path) -> None:
    sent = send(*FORMS["tar"], encrypt=False)
    one, two = ingest(sent, tmp_path), ingest(sent, tmp_path)
    assert one.descriptor.id != two.descriptor.id and one.descriptor.key != two.descriptor.key
    blobs = [(tmp_path / "blobs" / layer.descriptor.file_name).read_bytes() for layer in (one, two)]
    assert blobs[0] != blobs[1]
    with pytest.raises(PeerError):
        BlockOpener(one.descriptor).open(0, blobs[1][: one.descriptor.block_size + 16])
