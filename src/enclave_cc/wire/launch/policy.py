"""The owner's launch policy: which of the host's wishes are allowed, by image (docs/formats/launch.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from enclave_cc.errors import PeerError, foreign
from enclave_cc.record import field, record
from enclave_cc.wire.launch import members
from enclave_cc.wire.launch.members import Members
from enclave_cc.wire.launch.mounts import check_path

VERSION = 1
WORDS = frozenset({"command", "env", "volumes", "exec", "stdin", "user", "workdir", "capabilities"})


def check_word(word: str) -> str:
    """`word`, if it is one of the table in launch.md. Raises `PeerError("policy-invalid")`."""
    kind, colon, value = word.partition(":")
    if colon:
        if kind == "env" and value and "=" not in value:
            return word
        if kind == "capabilities" and value.startswith("CAP_"):
            return word
        if kind == "volumes":
            try:
                check_path(value, "the place")
            except PeerError as error:
                raise PeerError("policy-invalid", f"{foreign(word)!r}: {error.what}") from error
            return word
    elif word in WORDS:
        return word
    known = ", ".join([*sorted(WORDS), "env:NAME", "volumes:/PATH", "capabilities:CAP_NAME"])
    raise PeerError("policy-invalid", f"{foreign(word)!r} is nothing that a launch policy can allow; it can allow {known}")


@record
class Permissions:
    """What one image's host may wish for."""

    words: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for word in self.words:
            check_word(word)

    def allows(self, kind: str, value: str | None = None) -> bool:
        """Whether `kind` or `kind:value` is among the words."""
        return kind in self.words or (value is not None and f"{kind}:{value}" in self.words)


@record
class LaunchPolicy:
    """`images` is keyed by HOST[:PORT]/REPOSITORY. `LaunchPolicy()` is the strict one."""

    default: Permissions = field(default_factory=Permissions)
    images: Mapping[str, Permissions] = field(default_factory=dict)

    def for_image(self, name: str) -> Permissions:
        """What holds for HOST[:PORT]/REPOSITORY."""
        return self.images.get(name, self.default)

    def with_image(self, name: str, words: Iterable[str]) -> LaunchPolicy:
        """The same policy, but for `name` exactly `words`. Raises `PeerError("policy-invalid")`."""
        return LaunchPolicy(self.default, {**self.images, name: Permissions(frozenset(words))})

    def encode(self) -> bytes:
        return members.encode(
            {
                "version": VERSION,
                "default": {"allow": sorted(self.default.words)},
                "images": {name: {"allow": sorted(found.words)} for name, found in self.images.items()},
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> LaunchPolicy:
        """Raises `PeerError("policy-invalid")`."""
        document = Members.parse(data, "the launch policy", code="policy-invalid")
        document.check_version(VERSION)
        default = _read(document.child("default", optional=True))
        listed = document.child("images", optional=True)
        images = {name: _read(listed.child(name)) for name in listed.names()}
        document.end()
        return cls(default, images)


def _read(entry: Members) -> Permissions:
    words = entry.texts("allow", optional=True)
    entry.end()
    return Permissions(frozenset(words))
