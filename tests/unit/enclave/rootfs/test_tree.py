"""Merging where umoci cannot be the judge: order within a layer, refusals, layers sharing inodes.

What umoci can judge is compared with it in tests/integration/rootfs.
"""

from __future__ import annotations

import pytest

from enclave_cc.enclave.rootfs import entries, tree
from enclave_cc.enclave.rootfs.entries import Entry
from enclave_cc.enclave.rootfs.tree import Directory, merge
from enclave_cc.errors import PeerError


def file(path: str, mark: int = 0, **fields: object) -> Entry:
    return Entry(path.encode(), entries.FILE, uid=mark, **fields)  # type: ignore[arg-type]


def directory(path: str, mark: int = 0, **fields: object) -> Entry:
    return Entry(path.encode(), entries.DIRECTORY, fields.pop("mode", 0o755), uid=mark, **fields)  # type: ignore[arg-type]


def symlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), entries.SYMLINK, 0o777, link=target.encode())


def hardlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), entries.HARDLINK, link=target.encode())


def marks(*layers: list[Entry]) -> dict[str, int]:
    """Path -> owner, which tells where the path came from; the root is left out."""
    return {path.decode(): inode.entry.uid for path, inode in merge(layers).walk() if path}


def test_upper_layers_win_and_directories_merge() -> None:
    assert marks([directory("d", 1), file("d/a", 1), file("d/b", 1)], [directory("d", 2), file("d/b", 2), file("d/c", 2)]) == {
        "d": 2, "d/a": 1, "d/b": 2, "d/c": 2,
    }  # fmt: skip


def test_an_inode_knows_its_layer() -> None:
    merged = merge([[file("a"), file("b")], [file("b")], [hardlink("c", "a")]])
    assert {path: inode.layer for path, inode in merged.walk()} == {b"": -1, b"a": 0, b"b": 1, b"c": 0}


def test_walk_is_in_byte_order_with_parents_first() -> None:
    merged = merge([[file("b/z"), file("b.a"), file("a"), file("b/y/x")]])
    assert [path for path, _ in merged.walk()] == [b"", b"a", b"b", b"b/y", b"b/y/x", b"b/z", b"b.a"]


def test_whiteouts_spare_their_own_layer_wherever_they_stand() -> None:
    lower = [directory("d"), file("d/old"), file("f"), directory("d/e"), file("d/e/old")]
    upper = [file("d/new", 1), file("d/e/new", 1), file("f", 1)]
    expected = {"d": 0, "d/e": 0, "d/new": 1, "d/e/new": 1, "f": 1}
    opaque, whiteout = file("d/.wh..wh..opq"), file(".wh.f")
    for layer in ([opaque, whiteout, *upper], [*upper, opaque, whiteout], [upper[0], opaque, upper[1], whiteout, upper[2]]):
        kept = marks(lower, layer)
        assert {path: kept[path] for path in expected if path in kept} == expected
        assert not kept.keys() & {"d/old", "d/e/old"}


def test_a_whiteout_of_a_directory_that_its_layer_refills() -> None:
    assert marks([file("d/a"), file("d/b")], [file("d/b", 1), file(".wh.d")]) == {"d": 0, "d/b": 1}


def test_a_whiteout_reaches_through_a_symbolic_link_to_the_parent_but_not_the_target() -> None:
    lower = [directory("real"), file("real/a"), symlink("link", "/real")]
    assert "real/a" not in marks(lower, [file("link/.wh.a")])
    after = marks(lower, [file(".wh.link")])
    assert "real/a" in after and "link" not in after


def test_the_resolved_parent_is_forgotten_when_a_link_on_the_way_changes() -> None:
    layer = [directory("one"), directory("two"), symlink("link", "one"), file("link/a"), symlink("link", "two"), file("link/b")]
    assert marks(layer).keys() == {"one", "two", "link", "one/a", "two/b"}


def test_a_parent_removed_in_the_same_layer_is_made_anew() -> None:
    assert marks([file("d/a")], [file("d/b", 1), file("d", 2)])["d"] == 2
    with pytest.raises(PeerError):
        merge([[file("d/a")], [file("d/b"), file("d"), file("d/c")]])
    assert marks([file("d/a")], [file(".wh.d"), file("d/b", 1)]) == {"d": 0, "d/b": 1}


def test_hard_links_share_an_inode_until_one_name_is_replaced() -> None:
    merged = dict(merge([[file("a", 1)], [hardlink("b", "a"), hardlink("c", "b")], [file("a", 2)]]).walk())
    assert merged[b"b"] is merged[b"c"]
    assert (merged[b"a"].entry.uid, merged[b"b"].entry.uid) == (2, 1)


def test_a_hard_link_takes_what_is_there_at_its_turn() -> None:
    merged = dict(merge([[file("a", 1)], [hardlink("b", "a"), file("a", 2), hardlink("c", "a")]]).walk())
    assert [merged[name].entry.uid for name in (b"b", b"c")] == [1, 2]


def test_missing_parents_are_plain_and_dated_to_the_epoch() -> None:
    merged = dict(merge([[file("x/y/f", mtime=5)]]).walk())
    assert merged[b"x/y"].entry[1:6] == (entries.DIRECTORY, 0o755, 0, 0, 0)
    inherited = dict(merge([[directory("s", mode=0o2750, gid=9), file("s/t/f")]]).walk())
    assert (inherited[b"s/t"].entry.mode, inherited[b"s/t"].entry.gid) == (0o2755, 9)  # as mkdir(2)


@pytest.mark.parametrize("name", [".wh..wh.plnk", ".wh..wh.aufs"])
def test_bookkeeping_of_aufs_is_ignored(name: str) -> None:
    assert marks([file("a")], [directory(name), file(f"{name}/1.2"), file(f"d/{name}")]) == {"a": 0}


def test_whiteout_names_never_appear() -> None:
    merged = marks([file(".wh.a"), file("d/.wh.b"), file("d/.wh..wh..opq"), file(".wh..wh..opq"), file("x.wh.y"), file("d/z")])
    assert merged.keys() == {"x.wh.y", "d", "d/z"}


@pytest.mark.parametrize(
    "layer",
    [
        [file(".wh.")],
        [file("d/.wh..")],
        [file("d/.wh...")],
        [file(".wh.a/b")],
        [symlink("l", ".wh.a"), file("l/b")],
        [file("")],
        [symlink("", "x")],
        [file("..")],
        [hardlink("a", "")],
        [directory("d"), hardlink("a", "d")],
        [file("f"), file("f/g/h")],
        [symlink("l", "l"), file("l/x")],
    ],
)
def test_what_is_refused(layer: list[Entry]) -> None:
    with pytest.raises(PeerError) as refusal:
        merge([layer])
    assert refusal.value.code == "layer-broken"


def test_the_number_of_inodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_INODES", 10)
    merge([[file("a/b/c/d/e")], [file("a/b/c/d/f")]])
    with pytest.raises(PeerError):
        merge([[file("a/b/c/d/e")], [file("1/2/3/4/5/6")]])


def test_deep_trees_need_no_deep_stack() -> None:
    path = "/".join("d" * 2000)
    merged = merge([[file(path)], [file(".wh..wh..opq"), file("/".join("d" * 1000) + "/new")]])
    assert sum(1 for _ in merged.walk()) == 1002
    merged = merge([[file(path)], [file("/".join("d" * 1999) + "/new"), file(".wh..wh..opq")]])
    assert sum(1 for _ in merged.walk()) == 2001


def test_metadata_of_the_root() -> None:
    root = merge([[directory("", 3, mode=0o700, mtime=7)]]).root
    assert isinstance(root, Directory)
    assert (root.entry.uid, root.entry.mode, root.entry.mtime) == (3, 0o700, 7)
    assert merge([]).root.entry[1:6] == (entries.DIRECTORY, 0o755, 0, 0, 0)
