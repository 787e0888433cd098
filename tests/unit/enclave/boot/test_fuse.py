"""The FUSE server's answers, byte by byte, without a kernel. With one: tests/integration/sealed."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enclave_cc.enclave.boot import fuse_messages as messages
from enclave_cc.enclave.boot.blocks import Scratch
from enclave_cc.enclave.boot.fuse import BlobFileSystem
from enclave_cc.errors import EnvironmentFault, PeerError
from enclave_cc.wire.sealed.block import Role
from enclave_cc.wire.sealed.sealer import BlockSealer

PLAIN = os.urandom(5000)


class Kernel:
    """Asks like the kernel and reads the answer from a pipe."""

    def __init__(self, directory: Path) -> None:
        sealer = BlockSealer(Role.METADATA, block_size=8192)
        out = bytearray(len(PLAIN) + 16)
        sealer.seal_into(PLAIN, out, last=True)
        self.path = directory / "blob"
        self.path.write_bytes(out)
        self.log: list[str] = []
        self.system = BlobFileSystem([("meta", str(self.path), sealer.finish())], str(directory), self.log.append)
        self.answers, self.system._device = os.pipe2(os.O_NONBLOCK)
        self._scratch = Scratch(8192)

    def hand(self, request: bytes) -> bool:
        return self.system._answer(memoryview(request), self._scratch)

    def ask(self, operation: int, body: bytes = b"", node: int = 1) -> tuple[int, bytes]:
        """(error number, body) of the answer."""
        request = messages.HEADER.pack(40 + len(body), operation, 77, node, 0, 0, 0, 0, 0) + body
        self.hand(request)
        answer = os.read(self.answers, 1 << 20)
        length, error, unique = messages.REPLY.unpack_from(answer)
        assert (length, unique) == (len(answer), 77)
        return -error, answer[16:]

    def read(self, node: int, offset: int, size: int) -> tuple[int, bytes]:
        return self.ask(messages.READ, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0), node)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.system.close()
    os.close(made.answers)


def test_the_handshake(kernel: Kernel) -> None:
    error, answer = kernel.ask(messages.INIT, struct.pack("=IIII", 7, 41, 1 << 20, 0xFFFFFFFF) + bytes(48))
    assert error == 0 and len(answer) == 64
    assert struct.unpack_from("=II", answer) == (7, 36)
    flags = struct.unpack_from("=I", answer, 12)[0]
    assert flags == messages.ASYNC_READ | messages.PARALLEL_DIROPS | messages.MAX_PAGES


@pytest.mark.parametrize("version", [(7, 27), (6, 50)])
def test_a_kernel_that_is_too_old(kernel: Kernel, version: tuple[int, int]) -> None:
    assert kernel.ask(messages.INIT, struct.pack("=IIII", *version, 0, 0))[0] == errno.EPROTO
    assert "7.28" in kernel.log[0]


def test_lookup_and_attributes(kernel: Kernel) -> None:
    error, entry = kernel.ask(messages.LOOKUP, b"meta\0")
    assert error == 0 and len(entry) == 128
    node = struct.unpack_from("=Q", entry)[0]
    error, answer = kernel.ask(messages.GETATTR, bytes(16), node)
    assert error == 0 and answer[16:] == entry[40:] and len(answer) == 104
    assert struct.unpack_from("=QQ", answer, 16) == (node, 5120)  # whole granules
    for name, parent in ((b"other\0", 1), (b"\xff\xff\0", 1), (b"", 1), (b"meta\0", node), (b"meta\0", 99)):
        assert kernel.ask(messages.LOOKUP, name, parent)[0] == errno.ENOENT
    assert kernel.ask(messages.GETATTR, bytes(16), 99)[0] == errno.ENOENT


def test_reads(kernel: Kernel) -> None:
    assert kernel.read(2, 0, 8192) == (0, PLAIN + bytes(120))
    assert kernel.read(2, 4990, 20) == (0, PLAIN[4990:] + bytes(10))
    assert kernel.read(2, 5120, 20) == (0, b"")
    for node in (0, 1, 3, 1 << 63):
        assert kernel.read(node, 0, 10)[0] == errno.ENOENT


def test_a_broken_block(kernel: Kernel) -> None:
    kernel.path.write_bytes(bytes(kernel.path.stat().st_size))
    assert kernel.read(2, 0, 10) == (errno.EIO, b"")
    assert len(kernel.log) == 1 and "block 0 " in kernel.log[0]


def test_a_bug_is_an_error_to_the_asker_only(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.system, "_file", lambda node: 1 / 0)
    assert kernel.read(2, 0, 10) == (errno.EIO, b"")
    assert kernel.ask(messages.STATFS)[0] == 0
    assert "ZeroDivisionError" in kernel.log[0]


@pytest.mark.parametrize("operation", [4, 5, 6, 8, 9, 10, 11, 12, 13, 16, 20, 21, 22, 23, 24, 34, 35, 36, 39, 43, 46, 999])
def test_what_it_does_not_do(kernel: Kernel, operation: int) -> None:
    assert kernel.ask(operation, bytes(64)) == (errno.ENOSYS, b"")


def test_forgetting_has_no_answer(kernel: Kernel) -> None:
    for operation in (messages.FORGET, messages.BATCH_FORGET):
        assert kernel.hand(messages.HEADER.pack(56, operation, 1, 2, 0, 0, 0, 0, 0) + bytes(16))
    with pytest.raises(BlockingIOError):
        os.read(kernel.answers, 100)


def test_goodbye_ends_it(kernel: Kernel) -> None:
    assert not kernel.hand(messages.HEADER.pack(40, messages.DESTROY, 1, 0, 0, 0, 0, 0, 0))


def test_the_directory_in_pieces(kernel: Kernel) -> None:
    names, offset = [], 0
    while True:
        error, answer = kernel.ask(messages.READDIR, struct.pack("=QQIIQII", 0, offset, 40, 0, 0, 0, 0))
        assert error == 0
        if not answer:
            break
        _, offset, length, _ = struct.unpack_from("=QQII", answer)
        names.append(answer[24 : 24 + length])
    assert names == [b".", b"..", b"meta"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    operation=st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
    node=st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)),
    body=st.binary(max_size=80),
    cut=st.integers(0, 120),
)
def test_it_survives_any_request(kernel: Kernel, operation: int, node: int, body: bytes, cut: int) -> None:
    request = messages.HEADER.pack(40 + len(body), operation, 5, node, 0, 0, 0, 0, 0) + body
    assert kernel.hand(request[:cut]) or operation == messages.DESTROY
    try:
        answer = os.read(kernel.answers, 1 << 20)
    except BlockingIOError:
        return
    assert len(answer) == messages.REPLY.unpack_from(answer)[0]


def test_a_blob_that_is_not_there(kernel: Kernel, tmp_path: Path) -> None:
    descriptor = kernel.system._files[0].descriptor
    with pytest.raises(PeerError) as caught:
        BlobFileSystem([("a", str(kernel.path), descriptor), ("b", str(tmp_path / "none"), descriptor)], "/", print)
    assert caught.value.code == "seal-broken"


def test_a_place_where_nothing_can_be_mounted(kernel: Kernel, tmp_path: Path) -> None:
    system = BlobFileSystem([("a", str(kernel.path), kernel.system._files[0].descriptor)], str(tmp_path / "none"), print)
    with pytest.raises(EnvironmentFault) as caught:
        system.mount()
    assert caught.value.code == "mount-failed"
    system.close()
