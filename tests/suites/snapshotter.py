"""What every snapshotter must do (as containerd's snapshots/testsuite has it), over gRPC and with real mounts.

A test module derives from `SnapshotterSuite` and gives a fixture `snapshots`: a `Snapshots` client of an empty snapshotter,
or of one that other tests used under other keys.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from enclave_cc.wire.pb import codec
from enclave_cc.wire.pb import snapshots as pb
from enclave_cc.wire.pb.snapshots import Kind

T = TypeVar("T")
ROOT = {"containerd.io/gc.root": "suite"}  # keeps containerd's garbage collector away
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MNT_DETACH = 1, 32, 4096, 16384, 2
_OPTIONS_LIMIT = 4000  # bytes of mount(2)'s data: a page
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


class Snapshots:
    """A client of containerd.services.snapshots.v1; `name` and `namespace` matter to containerd, not to a plug-in itself."""

    def __init__(self, socket: Path, *, name: str = "", namespace: str = "suite", deadline: float = 60.0) -> None:
        self.name, self.namespace, self.deadline = name, namespace, deadline
        self.channel = grpc.insecure_channel(f"unix://{socket}", options=[("grpc.enable_http_proxy", 0)])

    def close(self) -> None:
        self.channel.close()

    def call(self, method: str, request: object, answer: type[T]) -> T:
        invoke = self.channel.unary_unary(f"/{pb.SERVICE}/{method}", codec.encode, lambda data: data)
        metadata = (("containerd-namespace", self.namespace),)
        return codec.decode(answer, invoke(request, timeout=self.deadline, metadata=metadata, wait_for_ready=True))

    def prepare(self, key: str, parent: str = "", labels: dict[str, str] | None = None) -> tuple[pb.Mount, ...]:
        request = pb.PrepareSnapshotRequest(self.name, key, parent, {**ROOT, **(labels or {})})
        return self.call("Prepare", request, pb.MountsResponse).mounts

    def view(self, key: str, parent: str = "", labels: dict[str, str] | None = None) -> tuple[pb.Mount, ...]:
        request = pb.PrepareSnapshotRequest(self.name, key, parent, {**ROOT, **(labels or {})})
        return self.call("View", request, pb.MountsResponse).mounts

    def mounts(self, key: str) -> tuple[pb.Mount, ...]:
        return self.call("Mounts", pb.SnapshotRequest(self.name, key), pb.MountsResponse).mounts

    def commit(self, name: str, key: str, labels: dict[str, str] | None = None, parent: str = "") -> None:
        request = pb.CommitSnapshotRequest(self.name, name, key, {**ROOT, **(labels or {})}, parent)
        self.call("Commit", request, pb.Empty)

    def remove(self, key: str) -> None:
        self.call("Remove", pb.SnapshotRequest(self.name, key), pb.Empty)

    def stat(self, key: str) -> pb.Info:
        found = self.call("Stat", pb.SnapshotRequest(self.name, key), pb.InfoResponse).info
        assert found is not None
        return found

    def update(self, info: pb.Info, *paths: str) -> pb.Info:
        request = pb.UpdateSnapshotRequest(self.name, info, pb.FieldMask(paths) if paths else None)
        found = self.call("Update", request, pb.InfoResponse).info
        assert found is not None
        return found

    def walk(self, *filters: str) -> list[pb.Info]:
        invoke = self.channel.unary_stream(f"/{pb.SERVICE}/List", codec.encode, lambda data: data)
        metadata = (("containerd-namespace", self.namespace),)
        answers = invoke(pb.ListSnapshotsRequest(self.name, filters), timeout=self.deadline, metadata=metadata)
        return [info for data in answers for info in codec.decode(pb.ListSnapshotsResponse, data).info]

    def usage(self, key: str) -> pb.UsageResponse:
        return self.call("Usage", pb.SnapshotRequest(self.name, key), pb.UsageResponse)

    def cleanup(self) -> None:
        self.call("Cleanup", pb.CleanupRequest(self.name), pb.Empty)


# --- mounts


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {kind} {data[:200]}")


@contextmanager
def mounted(mounts: Sequence[pb.Mount], directory: Path) -> Iterator[Path]:
    """The mounts as containerd makes them; a list of lower directories too long for mount(2) is made relative."""
    directory.mkdir(parents=True, exist_ok=True)
    assert len(mounts) == 1
    mount = mounts[0]
    here = Path.cwd()
    if mount.type == "bind":
        assert set(mount.options) <= {"ro", "rw", "rbind"}
        _mount(mount.source, directory, "", _MS_BIND | _MS_REC)
        if "ro" in mount.options:
            _mount("", directory, "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    else:
        assert mount.type == "overlay"
        options = list(mount.options)
        if len(",".join(options)) > _OPTIONS_LIMIT:
            at = next(i for i, option in enumerate(options) if option.startswith("lowerdir="))
            lower = options[at].removeprefix("lowerdir=").split(":")
            base = os.path.commonpath(lower)
            options[at] = "lowerdir=" + ":".join(os.path.relpath(path, base) for path in lower)
            os.chdir(base)
        try:
            _mount(mount.source, directory, "overlay", 0, ",".join(options))
        finally:
            os.chdir(here)
    try:
        yield directory
    finally:
        if _libc.umount2(os.fsencode(directory), _MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount", str(directory))


Tree = dict[str, tuple[object, ...]]


def read_tree(directory: Path) -> Tree:
    """Type, mode, owner and content of everything below `directory`, by path; "" is the directory itself."""
    found: Tree = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        found[str(path.relative_to(directory)).removeprefix(".")] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


class SnapshotterSuite:
    """Derive from it, and give a fixture `snapshots`."""

    @pytest.fixture
    def key(self) -> str:
        """A beginning for keys that no other test has."""
        return f"k{next(_numbers)}-{time.time_ns()}"

    def change(self, snapshots: Snapshots, place: Path, name: str, parent: str, *steps: object) -> str:
        """A committed snapshot on `parent` with what `steps` (functions of the mounted directory) did."""
        with mounted(snapshots.prepare(f"{name}-writing", parent), place / f"{name}-writing") as directory:
            for step in steps:
                step(directory)  # type: ignore[operator]
        snapshots.commit(name, f"{name}-writing")
        return name

    def look(self, snapshots: Snapshots, place: Path, name: str) -> Tree:
        """What a read-only view of a committed snapshot shows."""
        key = f"{name}-look-{next(_numbers)}"
        with mounted(snapshots.view(key, name), place / key) as directory:
            found = read_tree(directory)
        snapshots.remove(key)
        return found

    def check_stack(self, snapshots: Snapshots, place: Path, key: str, layers: Iterable[Sequence[object]]) -> None:
        """Each layer's steps, done on snapshots and on a flat directory, give the same tree, before and after."""
        flat = place / "flat"
        flat.mkdir(mode=0o755)
        flat.chmod(0o755)
        parent = ""
        for number, steps in enumerate(layers):
            writing = f"{key}-{number}-writing"
            with mounted(snapshots.prepare(writing, parent), place / "writing") as directory:
                assert read_tree(directory) == read_tree(flat)
                for step in steps:
                    step(directory)  # type: ignore[operator]
                    step(flat)  # type: ignore[operator]
                assert read_tree(directory) == read_tree(flat)
            parent = f"{key}-{number}"
            snapshots.commit(parent, writing)
        assert self.look(snapshots, place, parent) == read_tree(flat)

    # --- life

    def test_basic(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        def fill(directory: Path) -> None:
            write(directory / "foo", "foo\n", 0o777)
            (directory / "a/b/c").mkdir(parents=True)

        def alter(directory: Path) -> None:
            write(directory / "bar", "bar\n", 0o777)
            write(directory / "foo", "bar\n", 0o777)
            shutil.rmtree(directory / "a/b")

        base = self.change(snapshots, tmp_path, f"{key}-base", "", fill)
        first = snapshots.stat(base)
        assert (first.name, first.parent, first.kind) == (base, "", Kind.COMMITTED)
        with pytest.raises(grpc.RpcError) as error:
            snapshots.stat(f"{base}-writing")
        assert code_of(error) is grpc.StatusCode.NOT_FOUND
        top = self.change(snapshots, tmp_path, f"{key}-top", base, alter)
        second = snapshots.stat(top)
        assert (second.parent, second.kind) == (base, Kind.COMMITTED)
        walked = {info.name: info for info in snapshots.walk()}
        assert (walked[base], walked[top]) == (first, second)
        assert set(self.look(snapshots, tmp_path, top)) == {"", "a", "foo", "bar"}
        with pytest.raises(grpc.RpcError, match="remove") as error:
            snapshots.remove(base)
        assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
        snapshots.remove(top)
        snapshots.remove(base)
        assert not {base, top} & {info.name for info in snapshots.walk()}

    def test_stat_of_active_and_view(self, snapshots: Snapshots, key: str) -> None:
        snapshots.prepare(f"{key}-active")
        active = snapshots.stat(f"{key}-active")
        assert (active.name, active.kind, active.parent) == (f"{key}-active", Kind.ACTIVE, "")
        snapshots.commit(f"{key}-base", f"{key}-active")
        snapshots.view(f"{key}-view", f"{key}-base")
        view = snapshots.stat(f"{key}-view")
        assert (view.kind, view.parent) == (Kind.VIEW, f"{key}-base")

    def test_parents_of_parents(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        base = self.change(snapshots, tmp_path, f"{key}-a", "", lambda d: write(d / "foo", "foo\n"))
        top = self.change(snapshots, tmp_path, f"{key}-b", base, lambda d: write(d / "foo", "foo bar\n"))
        assert snapshots.stat(snapshots.stat(top).parent).parent == ""

    def test_keys_are_taken_once(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        base = self.change(snapshots, tmp_path, f"{key}-base", "")
        for first in (snapshots.prepare, snapshots.view):
            first(f"{key}-{first.__name__}", base)
            for second in (snapshots.prepare, snapshots.view):
                with pytest.raises(grpc.RpcError) as error:
                    second(f"{key}-{first.__name__}", base)
                assert code_of(error) is grpc.StatusCode.ALREADY_EXISTS
        snapshots.prepare(f"{key}-other")
        with pytest.raises(grpc.RpcError) as error:
            snapshots.commit(base, f"{key}-other")
        assert code_of(error) is grpc.StatusCode.ALREADY_EXISTS

    def test_what_is_not_there(self, snapshots: Snapshots, key: str) -> None:
        missing = f"{key}-missing"
        for call in (snapshots.stat, snapshots.mounts, snapshots.remove, snapshots.usage):
            with pytest.raises(grpc.RpcError) as error:
                call(missing)
            assert code_of(error) is grpc.StatusCode.NOT_FOUND, call.__name__
        for call in (snapshots.prepare, snapshots.view):
            with pytest.raises(grpc.RpcError) as error:
                call(f"{key}-child", missing)
            assert code_of(error) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as error:
            snapshots.commit(f"{key}-name", missing)
        assert code_of(error) is grpc.StatusCode.NOT_FOUND

    def test_only_active_ones_are_committed_and_only_committed_ones_are_parents(self, snapshots: Snapshots, key: str) -> None:
        snapshots.prepare(f"{key}-active")
        with pytest.raises(grpc.RpcError) as error:
            snapshots.prepare(f"{key}-child", f"{key}-active")
        assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
        snapshots.commit(f"{key}-base", f"{key}-active")
        snapshots.view(f"{key}-view", f"{key}-base")
        with pytest.raises(grpc.RpcError) as error:
            snapshots.commit(f"{key}-again", f"{key}-view")
        assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.RpcError) as error:
            snapshots.mounts(f"{key}-base")
        assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION

    def test_remove_and_use_again(self, snapshots: Snapshots, key: str) -> None:
        snapshots.prepare(f"{key}-a")
        snapshots.commit(f"{key}-1", f"{key}-a")
        snapshots.prepare(f"{key}-again", f"{key}-1")
        snapshots.remove(f"{key}-again")
        snapshots.view(f"{key}-again", f"{key}-1")
        snapshots.remove(f"{key}-again")
        snapshots.prepare(f"{key}-again")
        snapshots.remove(f"{key}-1")
        snapshots.commit(f"{key}-1", f"{key}-again")
        assert snapshots.stat(f"{key}-1").kind == Kind.COMMITTED

    def test_update(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        before = time.time()
        base = self.change(snapshots, tmp_path, f"{key}-base", "")
        snapshots.prepare(f"{key}-active", base)
        snapshots.view(f"{key}-view", base)
        after = time.time()
        for name in (base, f"{key}-active", f"{key}-view"):
            info = snapshots.stat(name)
            assert info.created_at == info.updated_at
            assert info.created_at is not None
            assert before <= info.created_at.seconds + info.created_at.nanos / 1e9 + 0.001 <= after + 0.002
            labels = {**ROOT, "l1": "v1", "l2": "v2", "l3": "v3"}
            changed = snapshots.update(pb.Info(name, "elsewhere", info.kind, None, None, labels))
            assert (changed.created_at, changed.kind, changed.parent, changed.labels) == (
                info.created_at,
                info.kind,
                info.parent,
                labels,
            )
            assert changed.updated_at != info.updated_at
            changed = snapshots.update(pb.Info(name, labels={"l1": "updated", "l4": "v4"}), "labels.l1", "labels.l2")
            assert changed.labels == {**ROOT, "l1": "updated", "l3": "v3"}
            changed = snapshots.update(pb.Info(name, labels={**ROOT, "l4": "v4"}), "labels")
            assert changed.labels == snapshots.stat(name).labels == {**ROOT, "l4": "v4"}
            with pytest.raises(grpc.RpcError) as error:
                snapshots.update(pb.Info(name, "elsewhere"), "parent")
            assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT

    def test_walk_with_filters(self, snapshots: Snapshots, key: str) -> None:
        mark = {"suite/mark": key}

        def commit(name: str, **labels: str) -> None:
            snapshots.prepare(f"{key}.tmp", labels=mark)
            snapshots.commit(f"{key}.{name}", f"{key}.tmp", {**mark, **labels})

        snapshots.prepare(f"{key}.a-np", labels=mark)
        commit("p")
        snapshots.prepare(f"{key}.a", f"{key}.p", mark)
        snapshots.view(f"{key}.v", f"{key}.p", mark)
        commit("p-wl", l="1")
        snapshots.prepare(f"{key}.a-wl", f"{key}.p-wl", {**mark, "l": "2"})
        snapshots.view(f"{key}.v-wl", f"{key}.p-wl", {**mark, "l": "3"})
        snapshots.prepare(f"{key}.a-np-wl", "", {**mark, "l": "2"})
        marked = f'labels."suite/mark"=={key}'
        cases: list[tuple[list[str], list[str]]] = [
            ([marked], ["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"]),
            ([f"kind==active,{marked}"], ["a-np", "a", "a-wl", "a-np-wl"]),
            ([f"kind==view,{marked}"], ["v", "v-wl"]),
            ([f"kind==committed,{marked}"], ["p", "p-wl"]),
            ([f"name=={key}.p", f'name=="{key}.a-np-wl"'], ["p", "a-np-wl"]),
            ([f"name=={key}.a-wl,labels.l"], ["a-wl"]),
            ([f"parent=={key}.p"], ["a", "v"]),
            ([f'parent!="",{marked}'], ["a", "v", "a-wl", "v-wl"]),
            ([f"labels.l,{marked}"], ["p-wl", "a-wl", "v-wl", "a-np-wl"]),
            ([f"{marked},labels.l==2"], ["a-wl", "a-np-wl"]),
            ([f"{marked},labels.l~=/^[13]$/"], ["p-wl", "v-wl"]),
            ([f'{marked},name~="[.]a$"'], ["a"]),
            ([f"{marked},labels.l!=2"], ["a-np", "p", "a", "v", "p-wl", "v-wl"]),
        ]
        for filters, names in cases:
            found = sorted(info.name.removeprefix(f"{key}.") for info in snapshots.walk(*filters))
            assert found == sorted(names), filters
        with pytest.raises(grpc.RpcError, match=r"expected|unsupported"):  # containerd itself gives it no code
            snapshots.walk("kind=active")

    def test_usage(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        def fill(directory: Path) -> None:
            write(directory / "big", "x" * 100_000)
            os.link(directory / "big", directory / "again")

        base = self.change(snapshots, tmp_path, f"{key}-base", "", fill)
        usage = snapshots.usage(base)
        assert usage.inodes == 2  # the root directory and one file
        assert 100_000 <= usage.size < 150_000
        mounts = snapshots.prepare(f"{key}-active", base)
        empty = snapshots.usage(f"{key}-active")
        assert empty.inodes == 1
        with mounted(mounts, tmp_path / "m") as directory:
            write(directory / "more", "y" * 50_000)
        assert 50_000 <= snapshots.usage(f"{key}-active").size - empty.size < 70_000

    # --- what is mounted

    def test_mounts_are_those_of_prepare(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        assert snapshots.prepare(f"{key}-a") == snapshots.mounts(f"{key}-a")
        snapshots.commit(f"{key}-1", f"{key}-a")
        assert snapshots.view(f"{key}-v", f"{key}-1") == snapshots.mounts(f"{key}-v")
        assert snapshots.prepare(f"{key}-b", f"{key}-1") == snapshots.mounts(f"{key}-b")

    def test_a_view_is_read_only(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        base = self.change(snapshots, tmp_path, f"{key}-1", "", lambda d: write(d / "foo", "foo"))
        top = self.change(snapshots, tmp_path, f"{key}-2", base, lambda d: write(d / "bar", "bar"))
        for parent in ("", base, top):
            with mounted(snapshots.view(f"{key}-v{parent}", parent), tmp_path / "view") as directory:
                with pytest.raises(OSError, match="Read-only"):
                    (directory / "new").write_text("no")
            snapshots.remove(f"{key}-v{parent}")

    def test_the_root_has_a_sane_mode(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        old = os.umask(0o077)
        try:
            with mounted(snapshots.prepare(f"{key}-a"), tmp_path / "m") as directory:
                assert stat.S_IMODE(directory.stat().st_mode) == 0o755
        finally:
            os.umask(old)

    def test_a_file_is_changed(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        first = [lambda d: write(d / "foo", "hello"), lambda d: write(d / "etc/hosts", "one", 0o644)]
        second = [lambda d: write(d / "etc/hosts", "two", 0o600), lambda d: (d / "root").mkdir(0o700)]
        self.check_stack(snapshots, tmp_path, key, [first, second, [lambda d: write(d / "etc/hosts", "three")]])

    def test_a_directory_of_a_lower_layer_is_removed(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        first = [lambda d: write(d / "dir/f1", "hello"), lambda d: write(d / "dir/f2", "hello")]
        second = [lambda d: shutil.rmtree(d / "dir")]
        third = [lambda d: (d / "dir").mkdir(), lambda d: write(d / "dir/f3", "new")]
        self.check_stack(snapshots, tmp_path, key, [first, second, third])

    def test_owners_and_modes(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        first = [lambda d: write(d / "opt/file", "x"), lambda d: (d / "opt").chmod(0o700), lambda d: os.chown(d, 7, 8)]
        second = [lambda d: os.chown(d / "opt/file", 5, 6), lambda d: (d / "opt").chmod(0o2755)]
        third = [lambda d: os.chown(d / "opt", 1, 2)]
        self.check_stack(snapshots, tmp_path, key, [first, second, third, []])  # the root's owner goes from layer to layer

    def test_files_are_deleted(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        first = [lambda d: write(d / "a/b/c", "x"), lambda d: write(d / "foo", "f"), lambda d: (d / "link").symlink_to("foo")]
        second = [lambda d: (d / "foo").unlink(), lambda d: (d / "a/b/c").unlink(), lambda d: write(d / "a/b/d", "y")]
        third = [lambda d: (d / "link").unlink(), lambda d: write(d / "foo/bar", "now a directory")]
        self.check_stack(snapshots, tmp_path, key, [first, second, third])

    def test_files_move_between_layers(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        def move(directory: Path) -> None:
            (directory / "dir3").mkdir()
            (directory / "dir1/f1").rename(directory / "dir3/f1")
            (directory / "dir1").rmdir()
            os.link(directory / "dir2/f2", directory / "dir3/f2")
            (directory / "dir2/f2").unlink()

        first = [lambda d: write(d / "dir1/f1", "hello"), lambda d: write(d / "dir2/f2", "...")]
        self.check_stack(snapshots, tmp_path, key, [first, [move]])

    def test_a_middle_snapshot_stays(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        base = self.change(snapshots, tmp_path, f"{key}-base", "", lambda d: write(d / "l1", "1"))
        middle = self.change(snapshots, tmp_path, f"{key}-middle", base, lambda d: write(d / "l2", "2"))
        snapshots.prepare(f"{key}-top", middle)
        for name in (middle, base):
            with pytest.raises(grpc.RpcError) as error:
                snapshots.remove(name)
            assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
        for name in (f"{key}-top", middle, base):
            snapshots.remove(name)

    def test_many_layers(self, snapshots: Snapshots, tmp_path: Path, key: str) -> None:
        """The kernel stacks 500; images have up to 127. Mounted once, since every mount costs."""
        count, parent = 127, ""
        for number in range(count):
            mounts = snapshots.prepare(f"{key}-{number}-w", parent)
            upper = mounts[0].source if mounts[0].type == "bind" else ""
            upper = upper or next(o.removeprefix("upperdir=") for o in mounts[0].options if o.startswith("upperdir="))
            write(Path(upper) / "last", str(number))
            write(Path(upper) / f"file-{number}", "same")
            parent = f"{key}-{number}"
            snapshots.commit(parent, f"{key}-{number}-w")
        found = self.look(snapshots, tmp_path, parent)
        assert found["last"][3] == str(count - 1).encode()
        assert len(found) == count + 2
