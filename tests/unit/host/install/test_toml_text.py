"""TOML that is written reads back the same; an import is added by one insertion or not at all."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.errors import UsageError
from enclave_cc.host.install import toml_text

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
SCALARS = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.lists(SCALARS, max_size=3) | st.lists(st.dictionaries(TEXT, SCALARS, max_size=2), max_size=2),
    lambda inner: st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
@settings(max_examples=150)
def test_what_is_written_reads_back(document: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text.encode(document)) == document


OURS = "/etc/containerd/conf.d/enclave-cc.toml"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2\n",
        "# a comment\nversion = 2\n\n[plugins]\n",
        'version = 2\nimports = []\n[grpc]\naddress = "x"\n',
        'imports = ["a.toml"]\nversion = 2',
        'imports = [\n  "a.toml",  # first ]\n  "b].toml",\n]\n',
        'imports = ["a.toml",]\n',
        "imports   =   [  'a.toml'  ]\n",
        '[plugins]\n[plugins."x"]\nimports = ["not ours"]\n',
    ],
)
def test_an_import_is_added_last(text: str) -> None:
    changed, piece = toml_text.add_import(text, OURS)
    before, after = tomllib.loads(text), tomllib.loads(changed)
    assert after == {**before, "imports": [*before.get("imports", []), OURS]}
    assert changed.count(piece) == 1
    assert changed.replace(piece, "") == text


@pytest.mark.parametrize(
    "text", ['"imports" = ["a"]\n', f"imports = [\"{OURS}x\", \"a\"] # \"{OURS}\"\nq = '''\nimports = [\n'''\n"]
)
def test_what_it_cannot_do_it_refuses(text: str) -> None:
    try:
        changed, piece = toml_text.add_import(text, OURS)
    except UsageError as error:
        assert error.code == "bad-config"
    else:
        assert changed.replace(piece, "") == text
        assert tomllib.loads(changed)["imports"][-1] == OURS
