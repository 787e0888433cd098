from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox import init_data
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.wire.rcar.initdata import InitData

BASE = Configuration(kbs_url="https://kbs.example:8443")


def test_the_agent_reads_what_the_host_configured(tmp_path: Path) -> None:
    (tmp_path / "kbs.pem").write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nBB==\n-----END CERTIFICATE-----\n")
    configured = replace(
        BASE, kbs_certificate=tmp_path / "kbs.pem", registry_ca=tmp_path / "ca.pem", registry_insecure=("r:5000", "s")
    )
    parsed = InitData.parse(init_data.write_init_data(configured))
    kbs = parsed.parse_entry("aa.toml")["token_configs"]["kbs"]
    assert kbs == {"url": "https://kbs.example:8443", "cert": (tmp_path / "kbs.pem").read_text()}
    image = parsed.parse_entry("cdh.toml")["image"]
    assert image["extra_root_certificates"] == [(tmp_path / "ca.pem").read_text()]
    assert image["registry_config"].count("[[registry]]") == 2


def test_config_id_is_the_padded_hash_of_the_text() -> None:
    text = init_data.write_init_data(BASE)
    assert init_data.compute_config_id(text) == hashlib.sha256(text.encode()).digest() + bytes(32)
    assert InitData.parse(text).digest() == hashlib.sha256(text.encode()).digest()


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40))
def test_any_text_of_the_configuration_survives_quoting(url: str) -> None:
    parsed = InitData.parse(init_data.write_init_data(replace(BASE, kbs_url=url, registry_insecure=(url,))))
    assert parsed.parse_entry("aa.toml")["token_configs"]["kbs"]["url"] == url


def test_without_a_kbs_there_is_nothing_to_attest_to() -> None:
    with pytest.raises(UsageError) as caught:
        init_data.write_init_data(Configuration())
    assert caught.value.code == "bad-config"


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        init_data.write_init_data(replace(BASE, kbs_certificate=tmp_path / "none"))
