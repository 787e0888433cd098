"""A PKCS#11 token: one session that is kept, a login that comes back, faults with codes.

python-pkcs11 initializes modules for one thread (C_Initialize without CKF_OS_LOCKING_OK), so that calls into a module
take turns here, whatever token they are for: a module is one per process, and so is the login. Cryptoki has no
deadlines: a call that hangs in the module hangs its thread, and those behind it run into theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.owner.resources.origin import Origin

T = TypeVar("T")


class Pkcs11Token:
    """One token by its label. Safe for many threads, which take turns."""

    def __init__(self, module: Path, label: str, pin: Origin, *, deadline: float = 10.0) -> None:
        """`deadline`: the longest wait for one's turn, in seconds.

        Raises `EnvironmentFault("missing-tool")` without the package python-pkcs11, `UsageError("not-found")` without
        the module; neither touches the token."""
        try:
            import pkcs11
        except ModuleNotFoundError as error:
            raise EnvironmentFault(
                "missing-tool", f"PKCS#11 needs the Python package {error.name}", "pip install 'enclave-cc[pkcs11]'."
            ) from error
        if not module.is_file():
            raise UsageError("not-found", f"there is no PKCS#11 module {module}", "Check module in kbs.toml.")
        self._errors: Any = pkcs11.exceptions
        self._module = _Module.find(str(module))
        self._label = label
        self._pin = pin
        self._deadline = deadline

    def run(self, act: Callable[[Any], T]) -> T:
        """`act` with a logged-in read-write session; once more if session or token turn out to be gone.

        `act` must do no harm when it is done twice. Raises `EnvironmentFault`: "store-unreachable", "store-denied",
        "store-failed", "disk-full", "deadline"."""
        gone, fault = self._gone(), None
        with self._module.turn(self._deadline):
            for last in (False, True):
                try:
                    session = self._module.session(self._label, self._log_in)
                    session.generate_random(64)  # a session that has gone shows here, where nothing is left open
                    return act(session)
                except self._errors.PKCS11Error as error:
                    fault = None if isinstance(error, gone) and not last else self._explain(error)
                if fault is not None:
                    break
                self._module.restart()
        # Outside of `except`: the binding's exception holds objects that call the module when they go.
        raise fault or EnvironmentFault("store-failed", "the PKCS#11 token fails")

    def _gone(self) -> tuple[type[Exception], ...]:
        session = ("SessionHandleInvalid", "SessionClosed", "UserNotLoggedIn", "ObjectHandleInvalid")
        # A token that was reset or is new is known to the module only after it starts anew.
        token = (
            "DeviceRemoved",
            "DeviceError",
            "GeneralError",
            "NoSuchToken",
            "TokenNotPresent",
            "TokenNotRecognised",
            "SlotIDInvalid",
        )
        return tuple(getattr(self._errors, name) for name in session + token)

    def _log_in(self, token: Any) -> Any:
        try:
            return token.open(rw=True, user_pin=self._pin.read().reveal().decode())
        except self._errors.UserAlreadyLoggedIn:  # somebody else in this process
            return token.open(rw=True)

    def _explain(self, error: Exception) -> EnvironmentFault:
        name, errors = type(error).__name__, self._errors
        if isinstance(error, errors.NoSuchToken | errors.TokenNotPresent | errors.DeviceRemoved):
            return EnvironmentFault("store-unreachable", f"the PKCS#11 token {foreign(self._label)!r} is not there")
        if isinstance(error, errors.PinIncorrect | errors.PinLocked | errors.PinExpired | errors.PinInvalid | errors.PinLenRange):
            # Not tried again: a token locks itself after a few wrong PINs.
            return EnvironmentFault("store-denied", f"the PKCS#11 token does not take the PIN ({name})")
        if isinstance(error, errors.UserNotLoggedIn | errors.SessionReadOnly | errors.TokenWriteProtected):
            return EnvironmentFault("store-denied", f"the PKCS#11 token does not allow it ({name})")
        if isinstance(error, errors.DeviceMemory | errors.HostMemory):
            return EnvironmentFault("disk-full", "the PKCS#11 token is full")
        return EnvironmentFault("store-failed", f"the PKCS#11 token fails ({name})")


class _Module:
    """One loaded module, with a session for each of its tokens that is used."""

    _loaded: dict[str, _Module] = {}  # noqa: RUF012 (of the class on purpose: a module is one per process)
    _loading = threading.Lock()

    @classmethod
    def find(cls, path: str) -> _Module:
        with cls._loading:
            return cls._loaded.setdefault(path, cls(path))

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._library: Any = None
        self._sessions: dict[str, Any] = {}

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=deadline):
            raise EnvironmentFault("deadline", "the PKCS#11 module stayed in use")
        try:
            yield
        finally:
            self._lock.release()

    def session(self, label: str, log_in: Callable[[Any], Any]) -> Any:
        if self._library is None:
            import pkcs11

            try:
                self._library = pkcs11.lib(self._path)
            except pkcs11.exceptions.PKCS11Error as error:
                raise EnvironmentFault("store-failed", f"{self._path} does not load as a PKCS#11 module") from error
        if label not in self._sessions:
            self._sessions[label] = log_in(self._library.get_token(token_label=label))
        return self._sessions[label]

    def restart(self) -> None:
        """C_Finalize and C_Initialize: ends every session, and finds tokens that came."""
        self._sessions.clear()
        self._library.reinitialize()
