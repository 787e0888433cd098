"""What the host configured, once it is proven to be what CONFIGID binds (ADR 2).

The document is init-data as RCAR defines it. Of its entries the agent reads `aa.toml` (which KBS) and `cdh.toml` (how
registries are reached); what decides about trust (signature policy, credentials, launch policy) is no part of it, and
an entry that tries to be is refused rather than passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.rcar import binding
from enclave_cc.wire.rcar.initdata import InitData

if TYPE_CHECKING:
    from enclave_cc.transport.registry_config import RegistryConfig

_LIST_LIMIT = 64


@record
class Configuration:
    """HOST-AUTHORED, bound by CONFIGID: the KBS's owner sees all of it in the evidence.

    `kbs_certificate`: PEM to pin. `insecure`, keys of `mirrors`: HOST[:PORT]; `ca_pem`: further CAs for registries.
    """

    text: bytes
    kbs_url: str
    kbs_certificate: str
    insecure: frozenset[str] = frozenset()
    ca_pem: str | None = None
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    concurrency: int = 3

    def registries(self, deadline: float) -> RegistryConfig:
        """For the registry client; its module is imported only here, as it takes 30 ms."""
        from enclave_cc.transport.registry_config import RegistryConfig

        return RegistryConfig(self.insecure, self.ca_pem, self.mirrors, self.concurrency, deadline)


def verify(text: bytes, config_id: bytes) -> Configuration:
    """The configuration in `text`. Raises `PeerError`: "measurement-changed" or "malformed".

    1. it is init-data (UTF-8, TOML, version 0.1.0)
    2. its digest, zero-padded, is the CONFIGID that this enclave was launched with
    3. it names a KBS and the certificate to know it by
    4. it configures nothing that the host has no say in
    """
    # 1
    try:
        document = InitData.parse(text.decode())
    except UnicodeDecodeError as error:
        raise PeerError("malformed", "init-data is not UTF-8") from error
    # 2
    if not compare_digest(binding.pad(document.digest()), config_id):
        raise PeerError(
            "measurement-changed",
            "the init-data is not the one that this enclave was launched with",
            "Launch the agent with the document's digest as CONFIGID.",
        )
    # 3
    kbs = _table(_table(document.parse_entry("aa.toml"), "token_configs"), "kbs")
    url, certificate = kbs.get("url"), kbs.get("cert")
    if not isinstance(url, str) or not isinstance(certificate, str) or not certificate.strip():
        raise PeerError(
            "malformed",
            "init-data does not name the KBS's url and cert",
            "Set [kbs] url and certificate in the node's configuration.",
        )
    # 4
    image = _take_image(document)
    insecure, mirrors = _read_registries(image.get("registry_config", ""))
    return Configuration(
        text=text,
        kbs_url=url,
        kbs_certificate=certificate,
        insecure=insecure,
        ca_pem=_read_certificates(image.get("extra_root_certificates", [])),
        mirrors=mirrors,
        concurrency=_read_concurrency(image.get("max_concurrent_layer_downloads_per_image", 3)),
    )


def _take_image(document: InitData) -> dict[str, Any]:
    if "cdh.toml" not in document.data:
        return {}
    image = _table(document.parse_entry("cdh.toml"), "image", optional=True)
    known = {"registry_config", "extra_root_certificates", "max_concurrent_layer_downloads_per_image"}
    for name in image:
        if name not in known:
            raise PeerError("malformed", f"init-data sets image.{foreign(name)}, which is not the host's to set")
    return image


def _read_registries(text: object) -> tuple[frozenset[str], dict[str, tuple[str, ...]]]:
    """The part of containers-registries.conf(5) version 2 that makes sense here."""
    if not isinstance(text, str):
        raise PeerError("malformed", "init-data: registry_config is not a text")
    document = InitData(text="", algorithm="sha256", data={"registry_config": text}).parse_entry("registry_config")
    insecure: set[str] = set()
    mirrors: dict[str, tuple[str, ...]] = {}
    for name in document:
        if name != "registry":
            raise PeerError("malformed", f"init-data: registry_config sets {foreign(name)}, which this agent does not take")
    for entry in _tables(document.get("registry", []), {"location", "insecure", "mirror"}):
        location = _take_location(entry, insecure)
        mirrors[location] = tuple(
            _take_location(mirror, insecure) for mirror in _tables(entry.get("mirror", []), {"location", "insecure"})
        )
    return frozenset(insecure), {location: found for location, found in mirrors.items() if found}


def _take_location(entry: dict[str, Any], insecure: set[str]) -> str:
    location, flag = entry.get("location"), entry.get("insecure", False)
    if not isinstance(location, str) or not location or not isinstance(flag, bool):
        raise PeerError("malformed", "init-data: a registry has no location, or its insecure is not true or false")
    if flag:
        insecure.add(location.partition("/")[0])
    return location


def _tables(value: object, known: set[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > _LIST_LIMIT:
        raise PeerError("malformed", "init-data: the registries are not a list, or too many")
    for entry in value:
        if not isinstance(entry, dict) or not set(entry) <= known:
            raise PeerError("malformed", f"init-data: a registry takes only {', '.join(sorted(known))}")
    return value


def _read_certificates(value: object) -> str | None:
    if not isinstance(value, list) or len(value) > _LIST_LIMIT or not all(isinstance(item, str) for item in value):
        raise PeerError("malformed", "init-data: extra_root_certificates is not a list of texts, or too long")
    return "\n".join(value) if value else None


def _read_concurrency(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LIST_LIMIT:
        raise PeerError("malformed", f"init-data: layers downloaded at once are not a number from 1 to {_LIST_LIMIT}")
    return value


def _table(document: dict[str, Any], name: str, *, optional: bool = False) -> dict[str, Any]:
    value = document.get(name, {} if optional else None)
    if not isinstance(value, dict):
        raise PeerError("malformed", f"init-data has no table {name}")
    return value
