from __future__ import annotations

import hashlib

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
