"""How a registry asks who we are (RFC 7235 challenges, distribution's token protocol), and what we know to answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enclave_cc.crypto.secret import Secret
from enclave_cc.errors import PeerError
from enclave_cc.record import record
from enclave_cc.wire.oci.document import Document, decode_base64
from enclave_cc.wire.oci.reference import Reference

_HEADER_LIMIT = 8192
_SCHEME = re.compile(r"[ ,]*([A-Za-z][A-Za-z0-9._~+-]*)(?: +|$)")
_PARAMETER = re.compile(r'[ ,]*([A-Za-z0-9!#$%&\'*+.^_`|~-]+) *= *(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_TOKEN_LIMIT = 64 << 10
_AUTH_FILE_LIMIT = 1 << 20
_LIFETIME = 60  # seconds; the token protocol's default when the answer has no expires_in


@record
class Credentials:
    """A user name and its password. `readable`: the owner lets the node see them (an auth.json key of `http://`)."""

    username: str
    password: Secret
    readable: bool = False

    def __post_init__(self) -> None:
        if ":" in self.username or not self.username.isprintable():  # RFC 7617 2
            raise PeerError("malformed", "the registry user name holds a colon or a control character")


@record
class Challenge:
    """One challenge of a `WWW-Authenticate` header; scheme and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """All challenges of one header value. Raises `PeerError("malformed")`."""
    if len(header) > _HEADER_LIMIT:
        raise PeerError("malformed", "the WWW-Authenticate header is too long")
    found: list[Challenge] = []
    at = 0
    while at < len(header):
        scheme = _SCHEME.match(header, at)
        if scheme is None or not scheme.group(1):
            raise PeerError("malformed", "the WWW-Authenticate header is not a list of challenges")
        at = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, at):
            name, quoted, token = parameter.groups()
            parameters.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token)
            at = parameter.end()
        found.append(Challenge(scheme.group(1).lower(), parameters))
        if not header[at:].strip(" ,"):
            break
    return tuple(found)


@record
class Token:
    """A bearer token and for how many seconds it is good."""

    value: Secret
    lifetime: int

    @classmethod
    def parse(cls, data: bytes) -> Token:
        """Reads the token server's answer. Raises `PeerError("malformed")`."""
        document = Document.parse(data, "the registry's token", limit=_TOKEN_LIMIT)
        value = document.text("token", "") or document.text("access_token", "")
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise PeerError("malformed", "the token server answered without a usable token")
        return cls(Secret(value.encode()), document.number("expires_in", _LIFETIME) or _LIFETIME)


@record
class AuthFile:
    """containers-auth.json(5) without credential helpers: credentials by host or by a path below it."""

    entries: Mapping[str, Credentials]

    @classmethod
    def parse(cls, data: bytes) -> AuthFile:
        """Raises `PeerError("malformed")`; its message holds nothing of `data`."""
        try:
            return cls._parse(data)
        except PeerError as error:
            raise PeerError("malformed", "the registry credential is not an auth.json") from error

    @classmethod
    def _parse(cls, data: bytes) -> AuthFile:
        document = Document.parse(data, "auth.json", limit=_AUTH_FILE_LIMIT)
        auths = document.document("auths")
        entries: dict[str, Credentials] = {}
        for key in auths.members():
            entry = auths.document(key)
            if not entry.has("auth"):
                continue
            decoded = decode_base64(entry.text("auth"), "auth.json")
            username, colon, password = decoded.partition(b":")
            if not colon:
                auths.fail("auth is not user:password")
            try:
                readable = key.startswith("http://")
                entries[_normalise(key)] = Credentials(username.decode(), Secret(password.rstrip(b"\0")), readable)
            except UnicodeDecodeError:
                auths.fail("a user name is not UTF-8")
        return cls(entries)

    def find(self, image: Reference) -> Credentials | None:
        """The entry of the longest path that holds `image`, else of its host."""
        parts = image.name.split("/")
        for count in range(len(parts), 0, -1):
            found = self.entries.get("/".join(parts[:count]))
            if found is not None:
                return found
        return None


def _normalise(key: str) -> str:
    """docker login writes Docker Hub as `https://index.docker.io/v1/`."""
    key = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    host = key.partition("/")[0]
    if host in {"index.docker.io", "registry-1.docker.io", "docker.io"}:
        rest = key.removeprefix(host).removeprefix("/v1")
        return "docker.io" + rest
    return key
