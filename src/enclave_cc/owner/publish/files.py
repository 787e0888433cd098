"""Files of an image layout, whether they lie in a directory or in an uncompressed tar archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from enclave_cc.errors import UsageError, foreign

CHUNK = 256 << 10
_DOCUMENT_LIMIT = 4 << 20


class Files(Protocol):
    """Read-only, by relative path with `/`; safe for many threads."""

    def names(self) -> set[str]: ...

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> Iterator[bytes]: ...


class DirectoryFiles:
    """A directory, such as `umoci` and `skopeo copy oci:` make."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> set[str]:
        return {str(path.relative_to(self._path)) for path in self._path.rglob("*") if path.is_file()}

    def size(self, name: str) -> int:
        return self._locate(name).stat().st_size

    def open(self, name: str) -> Iterator[bytes]:
        with self._locate(name).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def _locate(self, name: str) -> Path:
        path = self._path / name
        if not path.is_file():
            raise UsageError("not-found", f"{self._path} has no {foreign(name)}", "Give a complete image layout.")
        return path


class ArchiveFiles:
    """A tar archive, such as `skopeo copy oci-archive:` and `docker save` make. Links inside are followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}  # name -> offset, size
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isreg():
                        self._members[name] = (member.offset_data, member.size)
                links = [member for member in archive.getmembers() if member.issym() or member.islnk()]
        except tarfile.TarError as error:
            fix = "Give an uncompressed tar archive; decompress it first (gunzip, unzstd)."
            raise UsageError("usage", f"{path} is not a tar archive: {foreign(error)}", fix) from error
        for link in links:
            target = self._members.get(_resolve(link))
            if target is not None:
                self._members[link.name.removeprefix("./")] = target

    def names(self) -> set[str]:
        return set(self._members)

    def size(self, name: str) -> int:
        return self._find(name)[1]

    def open(self, name: str) -> Iterator[bytes]:
        offset, left = self._find(name)
        with self._path.open("rb") as file:
            file.seek(offset)
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def _find(self, name: str) -> tuple[int, int]:
        if name not in self._members:
            raise UsageError("not-found", f"{self._path} has no {foreign(name)}", "Give a complete image archive.")
        return self._members[name]


def read_document(files: Files, name: str) -> bytes:
    """A small file, whole. Raises `UsageError`."""
    if files.size(name) > _DOCUMENT_LIMIT:
        raise UsageError("usage", f"{foreign(name)} is larger than {_DOCUMENT_LIMIT} bytes", "Give a complete image layout.")
    return b"".join(files.open(name))


def _resolve(link: tarfile.TarInfo) -> str:
    if link.islnk():
        return link.linkname.removeprefix("./")
    parts = link.name.removeprefix("./").split("/")[:-1]
    for part in link.linkname.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)
