from __future__ import annotations

import hashlib
import json
import time
import tracemalloc

import pytest

from enclave_cc.errors import PeerError
from enclave_cc.wire.rcar.initdata import MAX_SIZE, InitData

TEXT = '''version = "0.1.0"
algorithm = "sha384"

[data]
"aa.toml" = """
[token_configs.kbs]
url = "https://127.0.0.1:8443"
since = 2026-01-01
"""
"cdh.toml" = "not [ toml"
"policy.rego" = "package x"
'''


def test_digest_is_over_the_exact_text() -> None:
    data = InitData.parse(TEXT)
    assert data.digest() == hashlib.sha384(TEXT.encode()).digest()
    assert (
        InitData.parse(TEXT.replace("sha384", "sha256") + "\n").digest()
        != InitData.parse(TEXT.replace("sha384", "sha256")).digest()
    )


def test_claims_as_upstream_shapes_them() -> None:
    claims = InitData.parse(TEXT).claims()
    assert claims["aa.toml"] == {"token_configs": {"kbs": {"url": "https://127.0.0.1:8443", "since": "2026-01-01"}}}
    assert claims["cdh.toml"] == "not [ toml"
    assert claims["policy.rego"] == "package x"


def test_entries() -> None:
    data = InitData.parse(TEXT)
    assert data.parse_entry("aa.toml")["token_configs"]["kbs"]["url"] == "https://127.0.0.1:8443"
    for name in ("cdh.toml", "absent"):
        with pytest.raises(PeerError):
            data.parse_entry(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        TEXT.replace("0.1.0", "0.2.0"),
        TEXT.replace("sha384", "md5"),
        'version = "0.1.0"\nalgorithm = "sha256"\n',
        'version = "0.1.0"\nalgorithm = "sha256"\n[data]\nx = 5\n',
        TEXT + "#" * MAX_SIZE,
        "a = " + "[" * 5000,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(PeerError) as refused:
        InitData.parse(text)
    assert refused.value.code == "malformed"


def test_numbers_that_json_lacks_become_text() -> None:
    text = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "a = nan\\nb = [inf, 1.5, true]"\n'
    assert InitData.parse(text).claims()["aa.toml"] == {"a": "nan", "b": ["inf", 1.5, True]}


LONG = ".".join(["a"] * 20_000) + " = 1\n"


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        f"[{LONG.removesuffix(' = 1' + chr(10))}]\n",
        "x = {" + LONG.strip() + "}\n",
        r'"\"".' * 20_000 + "a = 1\n",
        "'.' . " * 20_000 + "a = 1\n",
        TEXT + LONG,
    ],
)
def test_a_key_of_many_parts_takes_no_memory(text: str) -> None:
    """tomllib would take gigabytes for it, at the word of anybody who can reach the KBS."""
    for document in (text, f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = {json.dumps(text)}\n'):
        tracemalloc.start()
        try:
            with pytest.raises(PeerError):
                InitData.parse(document).parse_entry("aa.toml")
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("text", [r"\"a" * 80_000, r'"a\\' * 60_000, "a" * 250_000, '"' * 250_000, "'" * 250_000, ' "a' * 80_000])
def test_looking_for_such_keys_takes_no_time(text: str) -> None:
    started = time.process_time()
    with pytest.raises(PeerError):
        InitData.parse(text)
    assert time.process_time() - started < 5


def test_finds_whom_the_agent_trusts() -> None:
    def find(entry: str) -> str | None:
        data = f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = {json.dumps(entry)}\n'
        return InitData.parse(data).find_kbs_certificate()

    assert find("[token_configs.kbs]\ncert = 'PEM'\n") == "PEM"
    for entry in ("", "x", "token_configs = 1", "[token_configs.kbs]\ncert = 1\n", "[token_configs]\nkbs = []\n"):
        assert find(entry) is None
