"""Objects in a PKCS#11 token, as private data objects (CKO_DATA): readable after login, sealed by the token itself.

    CKA_APPLICATION "enclave-cc head"   CKA_LABEL repository/type/tag   CKA_OBJECT_ID number of the change, 8 bytes
    CKA_APPLICATION "enclave-cc value"  CKA_LABEL repository/type/tag   CKA_OBJECT_ID version, 8 bytes

Tokens replace nothing atomically: the new object is made first, and the one with the highest number counts. Writers of one
machine take turns on locks. A token searches through all that it holds: this is for hundreds of keys, not for 100,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from enclave_cc.owner.resources.locks import PathLocks
from enclave_cc.owner.resources.pkcs11_token import Pkcs11Token

_HEAD, _VALUE = "enclave-cc head", "enclave-cc value"


class TokenObjects:
    """An `ObjectStore` in a token."""

    def __init__(self, token: Pkcs11Token, locks: PathLocks) -> None:
        self._token = token
        self._locks = locks

    def lock(self, name: str) -> AbstractContextManager[None]:
        return self._locks.hold(name)

    def read_head(self, name: str) -> bytes | None:
        return self._token.run(lambda session: _newest(_find(session, _HEAD, name)))

    def write_head(self, name: str, data: bytes) -> None:
        def act(session: Any) -> None:
            present = _find(session, _HEAD, name)
            number = max((_number(each) for each in present), default=0) + 1
            _create(session, _HEAD, name, number, data)
            for each in present:
                each.destroy()

        self._token.run(act)

    def read_value(self, name: str, version: int) -> bytes | None:
        return self._token.run(lambda session: _newest(_find(session, _VALUE, name, version)))

    def write_value(self, name: str, version: int, data: bytes) -> None:
        def act(session: Any) -> None:
            # What is there is of a killed writer: no head names it, so that it can go first.
            for each in _find(session, _VALUE, name, version):
                each.destroy()
            _create(session, _VALUE, name, version, data)

        self._token.run(act)

    def remove_value(self, name: str, version: int) -> None:
        def act(session: Any) -> None:
            for each in _find(session, _VALUE, name, version):
                each.destroy()

        self._token.run(act)

    def list_names(self, prefix: str, after: str) -> Iterator[str]:
        from pkcs11 import Attribute

        def act(session: Any) -> list[str]:
            found = {str(each[Attribute.LABEL]) for each in _find(session, _HEAD)}
            return sorted(name for name in found if name.startswith(prefix) and name > after)

        return iter(self._token.run(act))


def _find(session: Any, application: str, name: str | None = None, number: int | None = None) -> list[Any]:
    from pkcs11 import Attribute, ObjectClass

    wanted: dict[Any, Any] = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: application}
    if name is not None:
        wanted[Attribute.LABEL] = name
    if number is not None:
        wanted[Attribute.OBJECT_ID] = number.to_bytes(8)
    return list(session.get_objects(wanted))  # to its end: a session has one search at a time


def _create(session: Any, application: str, name: str, number: int, data: bytes) -> None:
    from pkcs11 import Attribute, ObjectClass

    session.create_object(
        {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.APPLICATION: application,
            Attribute.LABEL: name,
            Attribute.OBJECT_ID: number.to_bytes(8),
            Attribute.VALUE: data,
        }
    )


def _number(found: Any) -> int:
    from pkcs11 import Attribute

    return int.from_bytes(found[Attribute.OBJECT_ID])


def _newest(found: list[Any]) -> bytes | None:
    from pkcs11 import Attribute

    return bytes(max(found, key=_number)[Attribute.VALUE]) if found else None
