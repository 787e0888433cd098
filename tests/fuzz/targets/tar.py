"""Any bytes are a layer that merges and gets its metadata, or raise `PeerError`."""

from __future__ import annotations

import io
import tarfile

from enclave_cc.enclave.rootfs.erofs import write_metadata
from enclave_cc.enclave.rootfs.tar import TarParser
from enclave_cc.enclave.rootfs.tree import merge
from enclave_cc.errors import PeerError


def _archive(form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, kind in (
            ("d", b"5"),
            ("d/f", b"0"),
            ("d/.wh.g", b"0"),
            ("d/l", b"1"),
            ("s", b"2"),
            ("c", b"3"),
            ("n" * 60 + "/" + "m" * 60, b"0"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime = kind, "d/f", 1.5  # type: ignore[assignment]
            info.size = 3 if kind == b"0" else 0
            archive.addfile(info, io.BytesIO(b"abc"))
    return stream.getvalue()


SEEDS: list[bytes] = [_archive(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def target(data: bytes) -> None:
    parser = TarParser()
    try:
        parser.feed(data[: len(data) // 2])
        parser.feed(data[len(data) // 2 :])
        write_metadata(merge([parser.finish()]), [len(data)])
    except PeerError:
        pass
