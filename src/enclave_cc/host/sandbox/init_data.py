"""Init-data: what the host configures for the agent enclave, as one document whose hash is the enclave's CONFIGID."""

from __future__ import annotations

import json
from pathlib import Path

from enclave_cc.errors import UsageError
from enclave_cc.host.sandbox.configuration import Configuration

CONFIG_ID_SIZE = 64


def write_init_data(configuration: Configuration) -> str:
    """The document (RCAR's init-data 0.1.0). Raises `UsageError("bad-config")`.

    Only [kbs] and [registry] go in: nothing that differs from pod to pod, so that an owner can pin the hash.
    """
    if not configuration.kbs_url:
        raise UsageError("bad-config", f"{configuration.source}: [kbs] url is not set")
    kbs = ["[token_configs.kbs]", f"url = {_text(configuration.kbs_url)}"]
    if configuration.kbs_certificate is not None:
        kbs.append(f"cert = {_text(_read(configuration, configuration.kbs_certificate))}")
    image = ["[image]"]
    if configuration.registry_ca is not None:
        image.append(f"extra_root_certificates = [{_text(_read(configuration, configuration.registry_ca))}]")
    if configuration.registry_insecure:
        registries = "".join(
            f"[[registry]]\nlocation = {_text(host)}\ninsecure = true\n" for host in configuration.registry_insecure
        )
        image.append(f"registry_config = {_text(registries)}")
    documents = {"aa.toml": kbs, "cdh.toml": image}
    lines = ['version = "0.1.0"', 'algorithm = "sha256"', "", "[data]"]
    lines += [f'"{name}" = {_text(chr(10).join(content) + chr(10))}' for name, content in documents.items()]
    return "\n".join(lines) + "\n"


def compute_config_id(document: str) -> bytes:
    """CONFIGID (64 bytes): SHA-256 of the document's bytes, zero-padded."""
    import hashlib

    return hashlib.sha256(document.encode()).digest().ljust(CONFIG_ID_SIZE, b"\0")


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's, but for DEL, which JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(configuration: Configuration, path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError) as error:
        raise UsageError("bad-config", f"{configuration.source}: {path} is not a readable PEM file") from error
