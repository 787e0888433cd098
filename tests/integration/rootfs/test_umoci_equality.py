"""The mounted tree is what `umoci unpack` makes of the same image: every path, owner, time, attribute and byte."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from debian_tree import debian_layer
from erofs_mount import mounted, parse_layers, write_image
from oci_layout import LayerBuilder, unpack_with_umoci, write_layout
from tree_comparison import differences, snapshot

from enclave_cc.errors import PeerError

pytestmark = pytest.mark.root

# cap_net_raw=ep, as setcap writes it (VFS_CAP_REVISION_2)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def assert_as_umoci(directory: Path, layers: Sequence[bytes], *, undated: Iterable[str] = (), block_bits: int = 9) -> None:
    expected = snapshot(unpack_with_umoci(write_layout(directory / "layout", layers), directory / "bundle"))
    image, devices = write_image(directory / "image", layers, block_bits=block_bits)
    with mounted(image, devices, directory / "mnt") as mount:
        found = snapshot(mount)
    assert differences(expected, found, ignore_mtime_of=undated) == []
    assert len(found) > 1


def surrogate(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def crafted_layers() -> list[bytes]:
    """Everything that an image can hold, over four layers and an empty one."""
    bottom = LayerBuilder()
    bottom.directory("./", mode=0o755, uid=3, gid=4)
    bottom.directory("etc").directory("usr").directory("usr/bin").directory("usr/lib").directory("tmp", mode=0o1777)
    bottom.symlink("bin", "usr/bin").symlink("lib", "/usr/lib")
    bottom.add("bin/ping", body=b"\x7fELF" + bytes(5000), mode=0o755, xattrs={"security.capability": surrogate(CAPABILITY)})
    bottom.add("bin/su", body=b"su" * 700, mode=0o4755).add("bin/wall", body=b"w", mode=0o2755, gid=5)
    bottom.add("etc/passwd", body=b"root:x:0:0:root:/root:/bin/sh\n").add("etc/shadow", body=b"secret", mode=0o640, gid=42)
    bottom.add("etc/empty").add("etc/zero-mode", body=b"0", mode=0)
    bottom.add("lib/libc.so", body=os.urandom(70_000), uid=70_000, gid=4_000_000_000)
    bottom.hardlink("usr/lib/libc.so.6", "usr/lib/libc.so").hardlink("lib/libc-again.so", "lib/libc.so")
    bottom.directory("data", xattrs={"user.note": "directory", "trusted.note": "t"}, mode=0o2775, gid=100)
    bottom.add("data/xattrs", body=b"x", xattrs={"user.a": "1", "user." + "b" * 200: "2" * 3000, "trusted.c": "3"})
    bottom.directory("dev").add("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    bottom.add("dev/loop300", tarfile.BLKTYPE, devmajor=7, devminor=300, mode=0o660, gid=6)
    bottom.add("dev/initctl", tarfile.FIFOTYPE, mode=0o600)
    deep = "/".join(["deep-directory-name"] * 12)
    for depth in range(12):
        bottom.directory("/".join(["deep-directory-name"] * (depth + 1)))
    bottom.add(deep + "/file", body=b"deep").add("n" * 255, body=b"long").symlink("s" * 255, "t" * 900)
    bottom.add("data/caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SNOWMAN}", body=b"utf-8").add("data/-dash", body=b"-")
    bottom.add("data/!first", body=b"!").add("data/with\nnewline", body=b"n")
    bottom.directory("many")
    for index in range(700):
        bottom.add(f"many/{index:03}-{'x' * (index % 90)}", body=b"m" * index)
    bottom.directory("old").add("old/file", body=b"old").directory("old/sub").add("old/sub/file", body=b"sub")
    bottom.directory("opaque").add("opaque/lower", body=b"l").directory("opaque/kept-dir").add("opaque/kept-dir/lower", body=b"l")
    bottom.directory("becomes-file").add("becomes-file/inside", body=b"i").add("becomes-dir", body=b"file")
    bottom.symlink("becomes-real", "data").add("gone", body=b"gone").add("replaced", body=b"first")
    bottom.add("epoch", body=b"e", mtime=0).add("before", body=b"b", mtime=-5.5)
    bottom.add("data/implied-below/slash/", body=b"", mtime=1.0)

    changes = LayerBuilder(format=tarfile.GNU_FORMAT)
    changes.add(".wh.gone").add("old/.wh.sub").add("opaque/kept-dir/upper", body=b"u").add("opaque/.wh..wh..opq")
    changes.add("opaque/upper", body=b"u").add("becomes-file", body=b"now a file").directory("becomes-dir", mode=0o700)
    changes.add("becomes-dir/inside", body=b"i").directory("becomes-real", mode=0o711).add("becomes-real/x", body=b"x")
    changes.add("replaced", body=b"second and longer", mode=0o600).add("l" * 180, body=b"GNU long name")
    changes.symlink("gnu-long-link", "k" * 180).directory("etc", mode=0o750, uid=9)
    changes.hardlink("usr/passwd-of-below", "etc/passwd").hardlink("linked-symlink", "bin")
    changes.add("lib/through-link", body=b"parent is a symbolic link").add("bin/../usr/lib/dotted", body=b"..")

    escapes = LayerBuilder(format=tarfile.USTAR_FORMAT)
    escapes.add("../../escape", body=b"confined").add("/absolute", body=b"absolute").symlink("up", "../../../../usr/lib")
    escapes.add("up/through-up", body=b"up").add("./dot/../confined", body=b"c").add("tmp//double", body=b"//")
    escapes.directory("data").add("etc/.wh.nothing-there").add("no-such-directory/.wh.x")
    escapes.add("late", body=b"late").add(".wh.late").add("old/.wh.file").add("old/file", body=b"new after its whiteout")

    top = LayerBuilder()
    top.add("usr/passwd-of-below", body=b"no longer linked").add("lib/libc.so", body=b"new libc")
    top.add("data/xattrs", body=b"y").directory("setgid", mode=0o2755, gid=77).add("setgid/implied/file", body=b"f")
    top.add("usr/implied/parents/file", body=b"f")
    return [bottom.finish(), changes.finish(), LayerBuilder().finish(), escapes.finish(), top.finish()]


# umoci gives these the time of unpacking: no layer describes them, or umoci made or emptied such a directory inside.
UNDATED = ("usr", "usr/implied", "usr/implied/parents", "setgid", "setgid/implied", "data/implied-below", "opaque/kept-dir")


def test_an_image_with_everything(tmp_path: Path) -> None:
    assert_as_umoci(tmp_path, crafted_layers(), undated=UNDATED)


def test_with_blocks_of_4096_everything_is_the_same(tmp_path: Path) -> None:
    assert_as_umoci(tmp_path, crafted_layers(), undated=UNDATED, block_bits=12)


def test_a_layer_without_a_root_entry(tmp_path: Path) -> None:
    assert_as_umoci(tmp_path, [LayerBuilder().add("file", body=b"f").finish()])


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, version: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.write(b"begin" * 100)
        file.seek(1 << 20)
        file.write(os.urandom(8192))
        file.seek(3 << 20)
        file.write(b"odd")
        file.truncate((4 << 20) + 777)
    with (source / "hole").open("wb") as file:
        file.truncate(1 << 33)
    (source / "plain").write_bytes(b"p" * 10_000)
    command = [
        "tar",
        "--create",
        "--sparse",
        f"--sparse-version={version}",
        "--format=posix",
        "--sort=name",
        "-C",
        str(source),
        ".",
    ]
    layer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    assert len(layer) < 1 << 20
    (source / "hole").unlink()  # 8 GiB to hash twice
    small = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    assert_as_umoci(tmp_path, [small])
    image, devices = write_image(tmp_path / "with-hole", [layer])
    with mounted(image, devices, tmp_path / "mnt") as mount:
        assert (mount / "hole").stat().st_size == 1 << 33
        with (mount / "hole").open("rb") as file:
            file.seek((1 << 33) - 5)
            assert file.read() == bytes(5)


def acl(*entries: tuple[int, int, int]) -> str:
    return surrogate(struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))


def test_access_control_lists(tmp_path: Path) -> None:
    nobody = 0xFFFFFFFF
    extended = acl((1, 6, nobody), (2, 4, 1000), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody))
    minimal = acl((1, 7, nobody), (4, 5, nobody), (32, 1, nobody))
    layer = LayerBuilder()
    layer.directory("d", xattrs={"system.posix_acl_default": extended})
    layer.add("d/extended", body=b"e", mode=0o600, xattrs={"system.posix_acl_access": extended})
    layer.add("d/minimal", body=b"m", mode=0o600, xattrs={"system.posix_acl_access": minimal})
    layer.add("d/none", body=b"n", mode=0o640).directory("d/sub")
    assert_as_umoci(tmp_path, [layer.finish()])


def test_attributes_of_the_building_host_are_dropped(tmp_path: Path) -> None:
    layer = LayerBuilder()
    layer.add("f", body=b"f", xattrs={"security.selinux": "label", "trusted.overlay.origin": "o", "user.kept": "k"})
    layer.directory("d", xattrs={"trusted.overlay.opaque": "y"})
    assert_as_umoci(tmp_path, [layer.finish()])


def test_layers_that_umoci_itself_wrote(tmp_path: Path) -> None:
    """Two `umoci insert`s and a removal, as a build tool makes layers."""
    layout = write_layout(tmp_path / "made", [LayerBuilder().directory("./").finish()])
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/a").write_bytes(os.urandom(100_000))
    os.link(source / "sub/a", source / "b")
    os.symlink("sub/a", source / "c")
    os.mkfifo(source / "fifo")
    os.setxattr(source / "b", "user.x", b"\0binary\xff")
    (source / ("z" * 200)).write_text("long")
    image = f"{layout}:latest"
    for arguments in (["--opaque", str(source), "/opt"], [str(source), "/srv"], ["--whiteout", "/opt/sub"]):
        subprocess.run(["umoci", "insert", "--image", image, *arguments], check=True, capture_output=True)
    index = json.loads((layout / "index.json").read_text())

    def blob(digest: str) -> bytes:
        return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()

    manifest = json.loads(blob(index["manifests"][-1]["digest"]))
    raw = [blob(layer["digest"]) for layer in manifest["layers"]]
    layers = [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in raw]
    assert len(layers) == 4
    assert_as_umoci(tmp_path, layers, undated=["opt", "srv"])


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("hard link to nothing", [LayerBuilder().hardlink("a", "b").finish()]),
        ("hard link to itself", [LayerBuilder().add("a").hardlink("a", "a").finish()]),
        ("hard link to a directory", [LayerBuilder().directory("d").hardlink("a", "d").finish()]),
        ("file below a file", [LayerBuilder().add("a", body=b"a").add("a/b").finish()]),
        ("root becomes a file", [LayerBuilder().add("./").finish()]),
        ("endless links", [LayerBuilder().symlink("a", "b").symlink("b", "a").add("a/x").finish()]),
        ("name too long", [LayerBuilder().add("n" * 256).finish()]),
    ],
)
def test_what_umoci_refuses_we_refuse(tmp_path: Path, name: str, layers: list[bytes]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        unpack_with_umoci(write_layout(tmp_path / "layout", layers), tmp_path / "bundle")
    with pytest.raises(PeerError) as refusal:
        parse_layers(layers)
    assert refusal.value.code == "layer-broken"


@pytest.mark.slow
def test_debian(tmp_path: Path) -> None:
    """A real distribution under a layer that changes it as a package upgrade would."""
    upgrade = LayerBuilder()
    upgrade.add("usr/bin/.wh.perl").add("usr/share/doc/.wh..wh..opq").add("etc/motd", body=b"changed")
    upgrade.hardlink("usr/bin/bash-again", "bin/bash").directory("usr/share/doc").add("usr/share/doc/new", body=b"n")
    assert_as_umoci(tmp_path, [debian_layer(), upgrade.finish()])
