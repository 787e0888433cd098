"""Registry bytes -> sealed blob and tree entries, in one pass, by three threads, with bounded memory.

    caller   chunks -> size, SHA-256 (digest) -> HMAC, AES-CTR
    thread 1 inflate
    thread 2 SHA-256 (diffID) -> tar headers -> AES-GCM blocks -> unnamed file

Nothing is written as plaintext, and the file has no name before digest, HMAC and diffID all held.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from enclave_cc.crypto.layer import LayerCipher
from enclave_cc.enclave.image.inflate import inflate
from enclave_cc.enclave.rootfs.entries import Entry, encode_entries
from enclave_cc.enclave.rootfs.layer import Layer
from enclave_cc.enclave.rootfs.sealed_writer import SealedWriter
from enclave_cc.enclave.rootfs.tar import TarParser
from enclave_cc.errors import PeerError, foreign
from enclave_cc.wire.sealed.block import Role

__all__ = ["Layer", "ingest_layer"]

PLAIN_LIMIT = 1 << 36
_DEPTH = 8  # chunks between two stages; with 256 KiB chunks 2 MiB


class _Channel:
    """A bounded queue between two stages of which either may fail; neither then blocks for ever."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        self._ended = False

    def put(self, chunk: bytes) -> None:
        self._queue.put(chunk)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[bytes]:
        while not self._ended:
            chunk = self._queue.get()
            if chunk is None:
                self._ended = True
                return
            yield chunk

    def drain(self) -> None:
        """The reader gives up: what the writer still has to say is thrown away, so that it never blocks."""
        for _ in self:
            pass


class _Abandoned(Exception):
    """A stage stops because another one failed."""


class _Pipeline:
    """The two threads behind the caller. The first error of any stage stops all."""

    def __init__(self, writer: SealedWriter, limit: int) -> None:
        self._writer = writer
        self._limit = limit
        self._compressed, self._plain = _Channel(), _Channel()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._diff = hashlib.sha256()
        self._entries: list[Entry] = []
        self._threads = [
            threading.Thread(target=self._run, args=(self._inflate, self._compressed), name="inflate"),
            threading.Thread(target=self._run, args=(self._seal, self._plain), name="seal"),
        ]
        for thread in self._threads:
            thread.start()

    def put(self, chunk: bytes) -> None:
        self._compressed.put(chunk)

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    def join(self, failure: BaseException | None = None) -> BaseException | None:
        """Ends the stream and waits for both threads, which have only what is queued left to do; their first error."""
        if failure is not None:
            self._fail(failure)
        self._compressed.end()
        for thread in self._threads:
            thread.join()
        return self._failure

    def finish(self) -> tuple[str, list[Entry]]:
        """diffID as found, and the entries. Only after `join` returned None."""
        return f"sha256:{self._diff.hexdigest()}", self._entries

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error

    def _run(self, stage: Callable[[], None], source: _Channel) -> None:
        try:
            stage()
        except BaseException as error:  # noqa: BLE001  (handed to the caller, who raises it)
            self._fail(error)
        source.drain()

    def _check(self) -> None:
        if self._failure is not None:
            raise _Abandoned

    def _inflate(self) -> None:
        try:
            for chunk in inflate(self._compressed, limit=self._limit):
                self._check()
                self._plain.put(chunk)
        finally:
            self._plain.end()

    def _seal(self) -> None:
        parser = TarParser()
        for chunk in self._plain:
            self._check()
            self._diff.update(chunk)
            parser.feed(chunk)
            self._writer.write(chunk)
        self._check()
        self._entries = parser.finish()


def ingest_layer(
    chunks: Iterable[bytes],
    *,
    digest: str,
    size: int,
    diff_id: str,
    media_type: str,
    cipher: LayerCipher | None,
    directory: Path,
    progress: Callable[[int], None],
    plain_limit: int = PLAIN_LIMIT,
) -> Layer:
    """Seals one layer into the cache at `directory`. `progress` is told the bytes received so far.

    `digest` and `size` are of the bytes in the registry, `diff_id` of the uncompressed tar, both "sha256:..." from
    documents that were verified. Checks, of which each must hold or nothing remains on the disk:

    1. exactly `size` bytes came, and their SHA-256 is `digest`: "digest-mismatch"
    2. the HMAC covers them, if the layer is encrypted: "layer-broken"
    3. they unpack, to at most `plain_limit` bytes, and are a tar archive: "layer-broken"
    4. the SHA-256 of the tar is `diff_id`: "layer-broken"

    When several fail the first is raised, because it names the cause. Raises what `chunks` raises, and
    `EnvironmentFault("disk-full")`.
    """
    if media_type.endswith("+encrypted") != (cipher is not None):
        raise PeerError("layer-broken", f"a layer of type {foreign(media_type)} came with{'out' if cipher is None else ''} a key")
    with SealedWriter(directory, Role.LAYER) as writer:
        pipeline = _Pipeline(writer, plain_limit)
        try:
            actual = _receive(chunks, size, cipher, pipeline, progress)
        except BaseException as error:
            pipeline.join(error)
            raise
        failure = pipeline.join()
        if failure is not None and not isinstance(failure, PeerError):
            raise failure
        if actual != digest:  # 1
            raise PeerError("digest-mismatch", f"layer {foreign(digest)} arrived as {actual}")
        if cipher is not None:  # 2
            cipher.verify()
        if failure is not None:  # 3
            raise failure
        actual_diff, entries = pipeline.finish()
        if actual_diff != diff_id:  # 4
            raise PeerError("layer-broken", f"layer {foreign(digest)} unpacks to {actual_diff}, not {foreign(diff_id)}")
        return Layer(digest, diff_id, writer.finish(), encode_entries(entries))


def _receive(
    chunks: Iterable[bytes], size: int, cipher: LayerCipher | None, pipeline: _Pipeline, progress: Callable[[int], None]
) -> str:
    """Feeds the pipeline; the SHA-256 of all bytes, "sha256:...".

    Content that cannot be unpacked does not end it: the rest is hashed to learn whether sender or publisher broke it.
    """
    digest = hashlib.sha256()
    received = 0
    for chunk in chunks:
        received += len(chunk)
        if received > size:  # 1
            raise PeerError("digest-mismatch", f"the layer is longer than the {size} bytes its manifest states")
        digest.update(chunk)
        failure = pipeline.failure
        if failure is None:
            pipeline.put(cipher.update(chunk) if cipher is not None else chunk)
        elif not isinstance(failure, PeerError):
            break
        elif cipher is not None:
            cipher.skip(chunk)
        progress(received)
    else:
        if received < size:  # 1
            raise PeerError("digest-mismatch", f"the layer is {received} bytes, its manifest states {size}")
    return f"sha256:{digest.hexdigest()}"
