"""Measured settings, and the host's init-data against CONFIGID."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from enclave_cc.enclave.agent import init_data, settings
from enclave_cc.errors import EnvironmentFault, PeerError, UsageError

HEAD = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
KBS = '"aa.toml" = \'\'\'\n[token_configs.kbs]\nurl = "https://kbs:8443"\ncert = """PEM"""\n\'\'\'\n'


def document(image: str = "", head: str = HEAD, kbs: str = KBS) -> bytes:
    return (head + kbs + (f"\"cdh.toml\" = '''\n[image]\n{image}\n'''\n" if image else "")).encode()


def verify(text: bytes) -> init_data.Configuration:
    return init_data.verify(text, hashlib.sha256(text).digest() + bytes(32))


def test_a_small_document() -> None:
    found = verify(document())
    assert (found.kbs_url, found.kbs_certificate, found.insecure, found.ca_pem) == ("https://kbs:8443", "PEM", frozenset(), None)
    assert found.text == document()


def test_registries() -> None:
    found = verify(
        document(
            'extra_root_certificates = ["A", "B"]\nmax_concurrent_layer_downloads_per_image = 7\n'
            'registry_config = """\n[[registry]]\nlocation = "r:5000"\ninsecure = true\n'
            '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "m:1/hub"\ninsecure = true\n"""'
        )
    )
    assert found.insecure == {"r:5000", "m:1"}
    assert found.mirrors == {"docker.io": ("m:1/hub",)}
    assert found.ca_pem == "A\nB"
    registries = found.registries(12.0)
    assert (registries.concurrency, registries.deadline, registries.insecure) == (7, 12.0, found.insecure)


def test_what_the_host_writes_is_what_we_read(tmp_path: Path) -> None:
    from enclave_cc.host.sandbox import configuration as host
    from enclave_cc.host.sandbox.init_data import compute_config_id, write_init_data

    certificate = tmp_path / "kbs.crt"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    written = host.parse(
        {
            "kbs": {"url": "https://127.0.0.1:8443", "certificate": str(certificate)},
            "registry": {"insecure": ["localhost:5000"]},
            "platform": {"tee": "simulated"},
        },
        "test",
    )
    text = write_init_data(written)
    found = init_data.verify(text.encode(), compute_config_id(text))
    assert found.kbs_url == "https://127.0.0.1:8443"
    assert found.kbs_certificate.startswith("-----BEGIN")
    assert found.insecure == {"localhost:5000"}


@pytest.mark.parametrize("offset", [0, 5, 30, -1])
def test_another_document_than_was_bound(offset: int) -> None:
    text = document()
    bound = hashlib.sha256(text).digest() + bytes(32)
    changed = text[:-1] + b"\n\n" if offset == -1 else text.replace(b"8443", b"8444")
    with pytest.raises(PeerError) as caught:
        init_data.verify(changed, bound)
    assert caught.value.code == "measurement-changed"
    for config_id in (bytes(64), bound[:63] + b"\1", b"\1" + bound[1:]):
        with pytest.raises(PeerError) as caught:
            init_data.verify(text, config_id)
        assert caught.value.code == "measurement-changed"


def test_another_hash() -> None:
    text = document(head=HEAD.replace("sha256", "sha512"))
    assert init_data.verify(text, hashlib.sha512(text).digest()).kbs_url


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"version = 1",
        document(head=HEAD.replace("0.1.0", "0.2.0")),
        document(head=HEAD.replace("sha256", "md5")),
        document(kbs=""),
        document(kbs=KBS.replace("url", "uri")),
        document(kbs=KBS.replace("PEM", " ")),
        document(kbs=KBS.replace("token_configs.kbs", "token_configs.other")),
        document('image_security_policy = "accept"'),
        document('image_security_policy_uri = "kbs:///x/y/z"'),
        document('authenticated_registry_credentials_uri = "kbs:///x/y/z"'),
        document("extra_root_certificates = [1]"),
        document("max_concurrent_layer_downloads_per_image = 0"),
        document("max_concurrent_layer_downloads_per_image = true"),
        document("registry_config = 1"),
        document('registry_config = "not toml ="'),
        document("registry_config = \"unqualified-search-registries = ['x']\""),
        document("registry_config = \"[[registry]]\\nlocation = ''\""),
        document("registry_config = \"[[registry]]\\nlocation = 'r'\\nblocked = true\""),
        document("registry_config = \"[[registry]]\\nlocation = 'r'\\ninsecure = 1\""),
        document("registry_config = \"[registry]\\nlocation = 'r'\""),
    ],
)
def test_documents_that_are_refused(text: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        verify(text)
    assert caught.value.code == "malformed"


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('tee = "simulated"\nkbs_deadline = 5\n')
    assert settings.load_settings(str(path)) == settings.Settings(tee="simulated", kbs_deadline=5)
    path.write_text("")
    assert settings.load_settings(str(path)).tee == "refuse"


@pytest.mark.parametrize("text", ["tee = 1", "x = 1", "kbs_deadline = 0", "kbs_deadline = true", 'kbs_deadline = "1"', "=", "\0"])
def test_settings_that_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        settings.load_settings(str(path))
    assert caught.value.code == "bad-config"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(EnvironmentFault):
        settings.read_file(str(path), 10)
    path.write_bytes(b"x" * 11)
    with pytest.raises(EnvironmentFault, match="more than"):
        settings.read_file(str(path), 10)
    assert settings.read_file(str(path), 11) == b"x" * 11


def test_the_apps_identity(tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_text('{"mr_enclave": "' + "ab" * 32 + '"}')
    assert settings.load_app_identity(str(path)).mr_enclave == b"\xab" * 32
    path.write_text("{}")
    with pytest.raises(UsageError):
        settings.load_app_identity(str(path))
