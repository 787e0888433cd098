"""Init-data (Trustee's `kbs/docs/initdata.md`, version 0.1.0): what the host configured, as a digest can bind it.

    version = "0.1.0"
    algorithm = "sha256" | "sha384" | "sha512"
    [data]
    "aa.toml" = '''...'''

The digest is over the exact text. On SGX it is CONFIGID, padded with zeros.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import record

VERSION = "0.1.0"
# aa.toml with a PEM and cdh.toml with a few CAs are about 10 kB.
MAX_SIZE = 256 * 1024
_ALGORITHMS = ("sha256", "sha384", "sha512")
# tomllib keeps every beginning of a dotted key: one key of 100 kB would take 10 GB.
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"""(?<![A-Za-z0-9_"'\\-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{32}}""")


@record
class InitData:
    """Parsed init-data. HOST-AUTHORED: the digest proves which text was used at launch, not that it is good."""

    text: str
    algorithm: str
    data: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> InitData:
        """Raises `PeerError("malformed")`."""
        if len(text) > MAX_SIZE:
            raise PeerError("malformed", f"init-data is longer than {MAX_SIZE} characters")
        document = _load_toml(text, "init-data")
        if document.get("version") != VERSION:
            raise PeerError("malformed", f"init-data has version {foreign(document.get('version'))}, this is {VERSION}")
        algorithm, data = document.get("algorithm"), document.get("data")
        if algorithm not in _ALGORITHMS:
            raise PeerError("malformed", f"init-data names the hash {foreign(algorithm)}; known are {', '.join(_ALGORITHMS)}")
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            raise PeerError("malformed", "init-data has no table [data] of texts")
        return cls(text, algorithm, MappingProxyType(data))

    def digest(self) -> bytes:
        """32, 48 or 64 bytes."""
        return hashlib.new(self.algorithm, self.text.encode()).digest()

    def parse_entry(self, name: str) -> dict[str, Any]:
        """The TOML document in entry `name`. Raises `PeerError("malformed")` if it is absent or not TOML."""
        text = self.data.get(name)
        if text is None:
            raise PeerError("malformed", f"init-data has no entry {name!r}")
        return _load_toml(text, f"init-data entry {name!r}")

    def find_kbs_certificate(self) -> str | None:
        """Whom the agent is to take for its KBS: PEM of `aa.toml`'s `token_configs.kbs.cert`; None where it names none."""
        try:
            found: Any = self.parse_entry("aa.toml")
        except PeerError:
            return None
        for name in ("token_configs", "kbs", "cert"):
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, str) else None

    def claims(self) -> dict[str, Any]:
        """The entries as attestation policies see them: `aa.toml` and `cdh.toml` as objects where they parse."""
        claims: dict[str, Any] = dict(self.data)
        for name in ("aa.toml", "cdh.toml"):
            if name in claims:
                try:
                    claims[name] = _to_json(self.parse_entry(name))
                except PeerError:
                    continue  # upstream leaves the text as it is
        return claims


def _load_toml(text: str, what: str) -> dict[str, Any]:
    if _LONG_KEY.search(text) is not None:
        raise PeerError("malformed", f"{what} has a key of too many parts")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise PeerError("malformed", f"{what} is not TOML") from error


def _to_json(value: Any) -> Any:
    """TOML's dates become text; everything else of TOML is JSON already."""
    if isinstance(value, dict):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
