"""A PKCS#11 token: one session that is kept, a login that comes back, faults with codes.

Each module has a thread of its own, which alone calls it. python-pkcs11 initializes modules for one thread (C_Initialize
without CKF_OS_LOCKING_OK); Cryptoki has no deadlines, and so it is this thread that a hanging token hangs, while the
callers end at theirs; and SoftHSM leaves errors in the thread's OpenSSL queue, where Python's TLS would take them for its
own. A module is one per process, whoever uses it, and so is the login to a token.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.owner.resources.origin import Origin

T = TypeVar("T")


class Pkcs11Token:
    """One token by its label. Safe for many threads."""

    def __init__(self, module: Path, label: str, pin: Origin, *, deadline: float = 10.0) -> None:
        """`deadline`: the longest that a call may take, waiting for one's turn included, in seconds.

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

        `act` must do no harm when it is done twice, and holds no object of the session when it returns. Raises
        `EnvironmentFault`: "store-unreachable", "store-denied", "store-failed", "disk-full", and "deadline", after which
        it may still come to be done."""
        future = self._module.submit(lambda: self._attempt(act))
        try:
            found = future.result(self._deadline)
        except TimeoutError as error:
            future.cancel()
            raise EnvironmentFault("deadline", "the PKCS#11 token does not answer, or has too much to do") from error
        if isinstance(found, EnvironmentFault):
            raise found
        return found

    def _attempt(self, act: Callable[[Any], T]) -> T | EnvironmentFault:
        """In the module's thread, where the binding's exceptions must also end: they hold what calls the module."""
        gone = self._gone()
        for last in (False, True):
            try:
                session = self._module.session(self._label, self._log_in)
                session.generate_random(64)  # a session that has gone shows here, where nothing is left open
                return act(session)
            except EnvironmentFault as fault:
                return fault
            except self._errors.PKCS11Error as error:
                if last or not isinstance(error, gone):
                    return self._explain(error)
            self._module.restart()
        raise AssertionError

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
    """One module and its thread, with a session for each of its tokens that is used."""

    _loaded: dict[str, _Module] = {}  # noqa: RUF012 (of the class on purpose: a module is one per process)
    _loading = Lock()

    @classmethod
    def find(cls, path: str) -> _Module:
        with cls._loading:
            if path not in cls._loaded:
                cls._loaded[path] = cls(path)
            return cls._loaded[path]

    def __init__(self, path: str) -> None:
        self._path = path
        self._library: Any = None
        self._sessions: dict[str, Any] = {}
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        # A daemon: a call that hangs must not keep the process from its end.
        Thread(target=self._serve, name="pkcs11", daemon=True).start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._waiting.put((future, call))
        return future

    def _serve(self) -> None:
        while True:
            future, call = self._waiting.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 (it is the caller's)
                    future.set_exception(error)
            del future, call

    # What follows is called in the module's thread.

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
