from __future__ import annotations

import marshal
import subprocess
from pathlib import Path

import grimp
import pytest

import enclave_cc
from enclave_cc.errors import UsageError
from enclave_cc.owner.reference import bundle, bundle_bytecode, bundle_closure, bundle_python, bundle_wheels
from enclave_cc.owner.reference.bundle_tree import BundleTree

SOURCE = Path(enclave_cc.__file__).parent


@pytest.mark.parametrize("role", ["agent", "app"])
def test_the_closure_is_what_grimp_finds(role: str) -> None:
    entry = bundle.PROGRAMS[role]
    graph = grimp.build_graph("enclave_cc", cache_dir=None)
    expected = {entry, *graph.find_upstream_modules(entry)}
    for name in list(expected):
        while "." in name:
            name = name.rpartition(".")[0]
            expected.add(name)
    # grimp leaves out what stands under TYPE_CHECKING by our configuration of it or not; either way nothing may be missing
    assert expected <= set(bundle_closure.compute_closure(entry, SOURCE))


@pytest.mark.parametrize("role", ["agent", "app"])
def test_measured_programs_carry_nothing_of_other_zones(role: str) -> None:
    names = set(bundle_closure.compute_closure(bundle.PROGRAMS[role], SOURCE))
    assert not {n for n in names if n.startswith(("enclave_cc.host", "enclave_cc.owner", "enclave_cc.simulator"))}
    if role == "app":
        assert not {n for n in names if n.startswith(("enclave_cc.enclave.agent", "enclave_cc.enclave.image"))}


def test_the_closure_follows_every_form_of_import(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "a": "import enclave_cc.b.c\ndef f():\n    from enclave_cc import d\n",
        "b/__init__": "from . import e\n",
        "b/c": "from .f import thing\nfrom ..g import h\n",
        "b/e": "import os\n",
        "b/f": "thing = 1\n",
        "d": "",
        "g": "h = 1\n",
        "unused": "",
    }
    for name, text in files.items():
        place = tmp_path / f"{name}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    found = bundle_closure.compute_closure("enclave_cc.a", tmp_path)
    assert set(found) == {"enclave_cc"} | {f"enclave_cc.{name}" for name in ("a", "b", "b.c", "b.e", "b.f", "d", "g")}


def test_bytecode_is_the_same_whatever_else_is_compiled_first() -> None:
    sources = {"/x/a.py": b"NAMES = ('alpha', 'beta')\ndef f(x):\n    '''doc'''\n    return {'alpha', 'beta'} & x\n"}
    first = bundle_bytecode.compile_sources(bundle_python.INTERPRETER, sources)
    second = bundle_bytecode.compile_sources(bundle_python.INTERPRETER, sources)
    assert first == second
    assert set(first) == {"/x/a.pyc"}
    assert first["/x/a.pyc"][4:8] == b"\1\0\0\0"  # PEP 552: hash-based, unchecked
    assert b"doc" not in first["/x/a.pyc"]


def test_bytecode_runs(tmp_path: Path) -> None:
    done = bundle_bytecode.compile_sources(bundle_python.INTERPRETER, {"/x/a.py": b"print(__file__, 6 * 7)"})
    (tmp_path / "a.pyc").write_bytes(done["/x/a.pyc"])
    ran = subprocess.run([bundle_python.INTERPRETER, "-I", "-S", tmp_path / "a.pyc"], capture_output=True, check=True)
    assert ran.stdout.endswith(b" 42\n")
    assert marshal.loads(done["/x/a.pyc"][16:]).co_filename == "/x/a.py"


def test_a_source_that_does_not_compile_is_named() -> None:
    with pytest.raises(UsageError, match="does not compile"):
        bundle_bytecode.compile_sources(bundle_python.INTERPRETER, {"/x/a.py": b"def"})


def test_a_tree_makes_parents_and_refuses_two_truths(tmp_path: Path) -> None:
    tree = BundleTree()
    tree.add_file("/a/b/c", b"1", program=True)
    tree.add_file("/a/b/c", b"1", program=True)
    tree.add_link("/a/l", "b/c")
    with pytest.raises(UsageError):
        tree.add_file("/a/b/c", b"2", program=True)
    assert [path for path, _ in tree.items()] == ["/a", "/a/b", "/a/b/c", "/a/l"]
    tree.write(tmp_path)
    assert (tmp_path / "a/l").read_bytes() == b"1"
    assert (tmp_path / "a/b/c").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755


def test_a_lock_without_hashes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("cryptography==1.0\n")
    with pytest.raises(UsageError, match="hashes"):
        bundle_wheels.fetch_wheels(tmp_path / "r.txt", tmp_path / "cache")


def test_the_library_has_no_tests_and_no_second_event_loop() -> None:
    for role in ("agent", "app"):
        paths = bundle_python.list_library(role)
        assert {"os.py", "encodings/utf_8.py", "json/decoder.py"} <= set(paths)
        assert not [p for p in paths if p.startswith(("test/", "asyncio/", "idlelib/", "lib2to3/", "tkinter/", "site"))]
    assert "ssl.py" in bundle_python.list_library("agent")
    assert "ssl.py" not in bundle_python.list_library("app")


@pytest.mark.parametrize(
    "changes", [{"role": "both"}, {"libos": "gramine"}, {"role": "app", "app": Path("/x")}, {"isv_svn": 1 << 16}]
)
def test_inputs_that_do_not_fit(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        bundle.BundleInputs(**{"role": "agent", "key": Path("/k"), "payload": Path("/p"), **changes})  # type: ignore[arg-type]
