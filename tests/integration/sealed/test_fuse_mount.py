"""Sealed blobs under a real kernel: FUSE, EROFS over it, and a host that changes the files meanwhile."""

from __future__ import annotations

import errno
import io
import os
import random
import select
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sealed_mount import Site, drop_caches

pytestmark = pytest.mark.root

BLOCK = 64 * 1024
STRIDE = BLOCK + 16
GONE = (errno.ENOTCONN, errno.ECONNABORTED)  # the server is; the second for requests that were under way


def make_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


DICE = random.Random(11)
FILES = {"big": DICE.randbytes(5 * BLOCK + 77), "empty": b""}
FILES |= {f"small/{n}": DICE.randbytes(DICE.randrange(3000)) for n in range(300)}
UPPER = {"upper/one": b"one", "big2": DICE.randbytes(3 * BLOCK)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.build(tmp_path, [make_tar(FILES), make_tar(UPPER)])


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_the_tree_reads_as_it_was_packed(site: Site) -> None:
    with site.served(), site.mounted() as root:
        assert read_tree(root) == FILES | UPPER
        drop_caches()
        assert read_tree(root) == FILES | UPPER
    assert site.log == ""


def test_the_served_directory(site: Site) -> None:
    with site.served():
        fuse = site.directory / "fuse"
        assert sorted(os.listdir(fuse)) == ["0", "1", "meta"]
        assert (fuse / "0").stat().st_size == -(-site.rootfs.layers[0].plain_size // 512) * 512
        assert os.statvfs(fuse).f_files == 3
        assert (fuse / "0").read_bytes()[: site.rootfs.layers[0].plain_size] == make_tar(FILES)
        for act in (lambda: (fuse / "new").write_text("x"), lambda: (fuse / "0").unlink(), lambda: (fuse / "0").open("r+b")):
            with pytest.raises(OSError) as caught:
                act()
            assert caught.value.errno == errno.EROFS


def test_many_readers_at_once(site: Site) -> None:
    with site.served(), site.mounted() as root:
        wrong: list[str] = []

        def read(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(60):
                name = dice.choice(["big", "big2", *list(FILES)[:50]])
                body = (FILES | UPPER)[name]
                offset = dice.randrange(len(body) + 1)
                with (root / name).open("rb", buffering=0) as file:
                    if os.pread(file.fileno(), 70_000, offset) != body[offset : offset + 70_000]:
                        wrong.append(name)
                if seed == 0:
                    drop_caches()

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def broken(site: Site, path: Path, block: int, where: int) -> None:
    with pytest.raises(OSError) as caught:
        with path.open("rb") as file:
            file.seek(where)
            file.read(10)
    assert caught.value.errno == errno.EIO
    blob = site.rootfs.layers[0]
    assert f"seal-broken: block {block} of blob {blob.id.hex()} (layer)" in site.log


def big_offset(block: int) -> int:
    """An offset in the file `big` whose byte lies in that block of the layer."""
    return block * BLOCK + 1000 - make_tar(FILES).index(FILES["big"][:100])


def test_a_byte_changed_before_it_is_mounted(site: Site) -> None:
    flip(site.blob(site.rootfs.layers[0]), 4 * STRIDE + 500)
    with site.served(), site.mounted() as root:
        broken(site, root / "big", 4, big_offset(4))
        assert (root / "big2").read_bytes() == UPPER["big2"]
        assert (root / "small/5").read_bytes() == FILES["small/5"]


def test_a_byte_changed_while_it_is_mounted(site: Site) -> None:
    with site.served(), site.mounted() as root:
        assert (root / "big").read_bytes() == FILES["big"]
        flip(site.blob(site.rootfs.layers[0]), 4 * STRIDE + 500)
        drop_caches()
        broken(site, root / "big", 4, big_offset(4))
        with pytest.raises(OSError):
            (root / "big").read_bytes()
        flip(site.blob(site.rootfs.layers[0]), 4 * STRIDE + 500)  # put right again: nothing was remembered wrongly
        drop_caches()
        assert (root / "big").read_bytes() == FILES["big"]


def swap_blocks(path: Path) -> None:
    blocks = [path.read_bytes()[at : at + STRIDE] for at in range(0, path.stat().st_size, STRIDE)]
    blocks[1], blocks[4] = blocks[4], blocks[1]
    path.write_bytes(b"".join(blocks))


@pytest.mark.parametrize("change", [swap_blocks, lambda path: os.truncate(path, 4 * STRIDE), lambda path: os.truncate(path, 0)])
def test_blocks_swapped_or_cut_off_while_it_is_mounted(site: Site, change: Callable[[Path], object]) -> None:
    with site.served(), site.mounted() as root:
        change(site.blob(site.rootfs.layers[0]))
        drop_caches()
        broken(site, root / "big", 4, big_offset(4))


def test_broken_metadata_does_not_mount(site: Site) -> None:
    flip(site.blob(site.rootfs.metadata), 1100)
    with site.served(), pytest.raises(OSError), site.mounted():
        pass
    assert f"block 0 of blob {site.rootfs.metadata.id.hex()} (metadata)" in site.log


def test_an_older_blob_in_its_place(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same layer sealed at another time: same plaintext, same size, another key."""
    old = Site.build(tmp_path_factory.mktemp("old"), [make_tar(FILES), make_tar(UPPER)])
    site.blob(site.rootfs.layers[0]).write_bytes(old.blob(old.rootfs.layers[0]).read_bytes())
    with site.served(), site.mounted() as root:
        broken(site, root / "big", 4, big_offset(4))


def test_a_removed_blob_stays_readable(site: Site) -> None:
    with site.served(), site.mounted() as root:
        for blob in site.rootfs.blobs:
            site.blob(blob).unlink()
        drop_caches()
        assert read_tree(root) == FILES | UPPER


def ends_in(seconds: float, action: Callable[[], object]) -> OSError:
    """`action` in a child process; the error it ends with. Fails if it hangs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os.write(writer, b"0")
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        assert select.select([reader], [], [], seconds)[0], "it hangs"
        return OSError(int(os.read(reader, 10)), "")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def test_a_killed_server_is_an_error_never_a_hang(site: Site) -> None:
    with site.served() as pid, site.mounted() as root:
        assert (root / "small/0").read_bytes() == FILES["small/0"]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        drop_caches()
        assert ends_in(10, lambda: (site.directory / "fuse/0").read_bytes()).errno == errno.ENOTCONN
        assert ends_in(10, lambda: (root / "big").read_bytes()).errno in (errno.EIO, *GONE)


def test_a_server_killed_under_load(site: Site) -> None:
    for delay in (0.0, 0.01, 0.05):
        with site.served() as pid, site.mounted() as root:
            drop_caches()
            killer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
            killer.start()
            error = ends_in(10, lambda root=root: [(root / name).read_bytes() for name in FILES])  # type: ignore[misc]
            assert error.errno in (0, errno.EIO, *GONE)
            killer.join()
            os.waitpid(pid, 0)


def test_a_stopped_server_ends_with_its_kill(site: Site) -> None:
    with site.served() as pid:
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        killer.start()
        assert ends_in(10, lambda: (site.directory / "fuse/0").read_bytes()).errno in GONE
        killer.join()
        os.waitpid(pid, 0)


def test_unmounting_ends_the_server(site: Site) -> None:
    with site.served() as pid:
        os.listdir(site.directory / "fuse")
        with site.mounted() as root:
            assert (root / "upper/one").read_bytes() == b"one"
        os.system(f"umount {site.directory}/fuse")
        until = time.monotonic() + 10
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < until
            time.sleep(0.02)
        (site.directory / "again").mkdir()
        os.system(f"mount -t tmpfs tmpfs {site.directory}/fuse")  # for `served`, which unmounts


def test_the_server_is_small(site: Site) -> None:
    with site.served() as pid, site.mounted() as root:
        before = private_memory(pid)
        assert read_tree(root) == FILES | UPPER
        assert private_memory(pid) - before < 8 << 20


def private_memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Private_"))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
