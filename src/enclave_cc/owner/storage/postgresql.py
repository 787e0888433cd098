"""PostgreSQL, for any number of KBS processes that serve from one database.

READ COMMITTED; transactions that read before they write take an advisory lock by name (`write(lock=...)`), so that they
need no stronger isolation. What the server is asked to hold to: a durable commit is on disk (`synchronous_commit`),
every statement and every wait for a lock ends (`statement_timeout`, `lock_timeout`), and a client that stands still in a
transaction is thrown out. What the server cannot promise, because it may itself stand still, a watchman here does.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import psycopg.conninfo
from psycopg import errors as states
from psycopg.pq import TransactionStatus

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.owner.storage.database import Conflict, Dialect, Done, check_parameters
from enclave_cc.owner.storage.pool import Pool
from enclave_cc.record import record

MINIMUM_VERSION = 15
_WATCH_SECONDS = 1.0
_RETRY_SECONDS = 0.1
# What can name a server: in a URL, and in libpq's own variables. (A service file can name any.)
_PLACES = (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"), ("service", "PGSERVICE"))
# Of a server that restarts (libpq gives no code here): by the kernel, by libpq, by the server.
_PASSING = ("refused", "No such file", "closed the connection", "starting up", "shutting down", "not yet accepting", "recovery")
_FIX_REACH = "Check that PostgreSQL runs, and [database] url in kbs.toml."


@record
class Timeouts:
    """Seconds. `connect`: to reach the server, and to wait for a free connection; `statement` and `lock`: each one."""

    connect: float = 5.0
    statement: float = 10.0
    lock: float = 10.0


class _Connection:
    """A psycopg connection, and since when it waits for the server."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw
        self.waiting_since: float | None = None
        self.cut = False

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> psycopg.Cursor[Any]:
        check_parameters(parameters)
        return self._run(_number(sql), parameters or None, None)

    def control(self, sql: str) -> None:
        """Runs statements that begin or end a transaction."""
        self._run(sql.encode(), None, False)

    def _run(self, sql: bytes, parameters: Sequence[object] | None, prepare: bool | None) -> psycopg.Cursor[Any]:
        self.waiting_since = time.monotonic()
        try:
            return self.raw.execute(sql, parameters, prepare=prepare)
        finally:
            self.waiting_since = None

    def is_alive(self) -> bool:
        """Without asking the server: an idle connection has nothing to read unless its end was announced."""
        if self.cut or self.raw.closed or self.raw.info.transaction_status != TransactionStatus.IDLE:
            return False
        return not _has_input(self.raw.fileno())

    def cut_off(self) -> None:
        """Ends the wait of the thread that uses it."""
        self.cut = True
        with suppress(OSError), socket.socket(fileno=os.dup(self.raw.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.raw.close()


class PostgresDatabase:
    """A pool of connections. Safe for many threads."""

    dialect: Dialect = "postgresql"

    def __init__(self, conninfo: str, password: str | None, *, pool: int = 16, timeouts: Timeouts | None = None) -> None:
        """`conninfo` names a server without a password. Raises `EnvironmentFault`, `UsageError("bad-config")`."""
        self._conninfo = conninfo
        self._password = password
        self._timeouts = timeouts or Timeouts()
        self._gone_at = float("-inf")
        self._in_use: set[_Connection] = set()
        self._in_use_lock = threading.Lock()
        self._closing = threading.Event()
        # Durability is a setting of the connection, as setting it for each transaction would be a round trip more.
        few = max(1, pool // 4)
        self._durable: Pool[_Connection] = Pool(lambda: self._connect("on"), few, self._timeouts.connect)
        self._relaxed: Pool[_Connection] = Pool(lambda: self._connect("off"), max(1, pool - few), self._timeouts.connect)
        self._watchman = threading.Thread(target=self._watch, name="kbs-database", daemon=True)
        self._watchman.start()
        try:
            with self.read() as db:
                self._check_server(db)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[_Connection]:
        with self._use(durable=False) as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True, lock: str = "") -> Iterator[_Connection]:
        begin = f"BEGIN; SELECT pg_advisory_xact_lock({_number_lock(lock)})" if lock else "BEGIN"
        with self._use(durable) as connection:
            try:
                connection.control(begin)
                yield connection
                connection.control("COMMIT")
            except BaseException:
                if not connection.raw.closed:
                    with suppress(psycopg.Error):
                        connection.control("ROLLBACK")
                raise

    def run(self, sql: str, parameters: Sequence[object] = (), *, durable: bool = True) -> Done:
        with self._use(durable) as connection:
            result = connection.execute(sql, parameters)
            return Done(result.fetchall() if result.description else [], result.rowcount)

    def has_table(self, name: str) -> bool:
        with self.read() as db:
            return db.execute("SELECT 1 WHERE to_regclass(CAST(? AS TEXT)) IS NOT NULL", (name,)).fetchone() is not None

    def close(self) -> None:
        self._closing.set()
        self._durable.close()
        self._relaxed.close()
        if self._watchman is not threading.current_thread():
            self._watchman.join(_WATCH_SECONDS * 2)

    @contextmanager
    def _use(self, durable: bool) -> Iterator[_Connection]:
        with self._faults(), (self._durable if durable else self._relaxed).take() as connection:
            with self._in_use_lock:
                self._in_use.add(connection)
            try:
                yield connection
            finally:
                with self._in_use_lock:
                    self._in_use.discard(connection)

    def _connect(self, synchronous_commit: str) -> _Connection:
        """Tries for as long as `connect` allows, as a server that restarts is soon there again; and only once when that was
        in vain lately, so that requests do not queue up behind a server that is gone."""
        wait = self._timeouts.connect
        gone = time.monotonic() - self._gone_at < 2 * wait
        end = time.monotonic() + (0 if gone else wait)
        while True:
            try:
                return self._connect_once(synchronous_commit)
            except psycopg.OperationalError as error:
                passing = any(words in str(error) for words in _PASSING)
                if not passing or time.monotonic() + _RETRY_SECONDS > end or self._closing.wait(_RETRY_SECONDS):
                    self._gone_at = time.monotonic()
                    raise

    def _connect_once(self, synchronous_commit: str) -> _Connection:
        timeouts = self._timeouts
        # What the block does between two statements is short; a process that was stopped must not hold locks.
        settings = {
            "statement_timeout": timeouts.statement,
            "lock_timeout": timeouts.lock,
            "idle_in_transaction_session_timeout": 3 * timeouts.statement,
        }
        raw: psycopg.Connection[Any] = psycopg.connect(
            self._conninfo,
            password=self._password,
            autocommit=True,
            cursor_factory=psycopg.RawCursor,
            connect_timeout=max(2, round(timeouts.connect)),
            options=" ".join(f"-c {name}={round(value * 1000)}" for name, value in settings.items()),
            client_encoding="utf8",
            application_name="enclave-cc-kbs",
            keepalives_idle=round(timeouts.statement) or 1,
            tcp_user_timeout=round(2000 * timeouts.statement),
        )
        # A server whose default is to acknowledge first and write later does not decide that for us; one that waits for
        # standbys does.
        raw.execute(
            "SELECT set_config('synchronous_commit', $1, false) WHERE $1 = 'off' OR current_setting('synchronous_commit') = 'off'",
            (synchronous_commit,),
        )
        return _Connection(raw)

    def _check_server(self, db: _Connection) -> None:
        version = db.raw.info.server_version // 10000
        if version < MINIMUM_VERSION:
            raise UsageError("bad-config", f"the KBS database is PostgreSQL {version}; {MINIMUM_VERSION} or newer is needed")
        found = db.execute("SELECT current_setting('server_encoding'), current_setting('fsync')").fetchall()
        ((encoding, fsync),) = found
        if encoding != "UTF8":
            raise UsageError(
                "bad-config", f"the KBS database has the encoding {foreign(encoding)}", "Create it with ENCODING UTF8."
            )
        if fsync != "on":
            raise UsageError("bad-config", "the PostgreSQL server runs with fsync off and would lose keys in a power cut")

    def _watch(self) -> None:
        """Cuts off what waits for longer than the server should ever let it."""
        limit = self._timeouts.statement + self._timeouts.connect
        while not self._closing.wait(_WATCH_SECONDS):
            with self._in_use_lock:
                waiting = [(each, each.waiting_since) for each in self._in_use]
            for connection, since in waiting:
                if since is not None and time.monotonic() - since > limit and connection.waiting_since == since:
                    connection.cut_off()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """psycopg's errors as ours. The server's words may quote values, so only its code is told."""
        try:
            yield
        except (states.SerializationFailure, states.DeadlockDetected) as error:
            raise Conflict from error
        except (states.QueryCanceled, states.LockNotAvailable) as error:
            raise EnvironmentFault("deadline", "the KBS database did not answer in time", _FIX_REACH) from error
        except (states.DiskFull, states.OutOfMemory) as error:
            raise EnvironmentFault("disk-full", "the KBS database cannot grow", "Free space on the PostgreSQL server.") from error
        except psycopg.OperationalError as error:
            if error.sqlstate is None or error.sqlstate.startswith(("08", "53", "57")):
                what = "the KBS database cannot be reached: " + self._describe(error)
                raise EnvironmentFault("database-unreachable", what, _FIX_REACH) from error
            raise EnvironmentFault("environment", f"the KBS database fails: {_name(error)}") from error
        except psycopg.Error as error:
            raise EnvironmentFault("environment", f"the KBS database fails: {_name(error)}") from error

    def _describe(self, error: psycopg.Error) -> str:
        if error.sqlstate is not None:
            return _name(error)
        text = str(error).strip().splitlines()
        line = text[0] if text else type(error).__name__
        return foreign(line.replace(self._password, "***") if self._password else line)


def read_url(url: str) -> str:
    """A `postgresql://` URL as libpq's connection string. Raises `UsageError("bad-config")`, never repeating the URL.

    1. libpq can read it.
    2. A server that is not on this machine is reached by TLS with its name verified, unless the URL says `sslmode`.
    """
    # 1
    try:
        members = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        raise UsageError("bad-config", "[database] url is not a PostgreSQL URL") from None
    # 2
    named = [str(members.get(name) or os.environ.get(variable, "")) for name, variable in _PLACES]
    if "sslmode" not in members and not all(_is_local(each) for words in named for each in words.split(",")):
        members |= {"sslmode": "verify-full", "sslrootcert": members.get("sslrootcert", "system")}
    return psycopg.conninfo.make_conninfo("", **members)


def _is_local(host: str) -> bool:
    return host in ("", "localhost", "127.0.0.1", "::1") or host.startswith(("/", "@"))


def _name(error: psycopg.Error) -> str:
    return type(error).__name__ + (f" (SQLSTATE {error.sqlstate})" if error.sqlstate else "")


@functools.cache
def _number(sql: str) -> bytes:
    """`?` outside quotes to `$1`, `$2`, ..."""
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if match[0] != "?":
            return match[0]
        count += 1
        return f"${count}"

    return re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|\?", replace, sql).encode()


@functools.cache
def _number_lock(name: str) -> int:
    """The advisory lock's number: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(b"enclave-cc/" + name.encode()).digest()[:8], signed=True)


def _has_input(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
