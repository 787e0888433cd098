"""A PostgreSQL server of one's own for tests and bench: in a temporary directory, on a unix socket and a loopback port.

It runs as Debian's user `postgres` when we are root, which PostgreSQL refuses to be. Its end follows ours: by `stop`,
or by the kernel when the thread that called `start` ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PASSWORD = "correct horse"
_ROOT = Path("/usr/lib/postgresql")  # where Debian keeps each version
_START_SECONDS = 60


class PrivatePostgresql:
    """`start`, then `create_database`; fsync is on, as `kill -9` is what tests do to it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ecc-pg-", dir="/tmp"))
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        self._as_user("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "-D", self._data)
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (self.directory / "data/pg_hba.conf").write_text(rules)
        settings = ["shared_buffers = 32MB", "max_connections = 200", f"port = {self.port}", "listen_addresses = '127.0.0.1'"]
        settings += [f"unix_socket_directories = '{self.directory}'", "autovacuum = on", "fsync = on"]
        with (self.directory / "data/postgresql.conf").open("a") as file:
            file.write("\n".join([*settings, ""]))

    @property
    def _data(self) -> str:
        return str(self.directory / "data")

    def start(self) -> None:
        command = [str(_find("postgres")), "-D", self._data]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*_become(), *command], stdout=log, stderr=log, cwd="/")
        end = time.monotonic() + _START_SECONDS
        while self._run("SELECT 1", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.directory / "log").read_text()[-2000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the whole server, as a power cut would leave its files (but for what the kernel holds)."""
        assert self.process is not None
        _signal(self.process.pid, signal.SIGSTOP)  # so that it forks no backend that the list would lack
        group = [self.process.pid, *_children(self.process.pid)]
        for pid in group:
            _signal(pid, signal.SIGKILL)
        self.process.wait(30)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in group) and time.monotonic() < end:
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        shutil.rmtree(self.directory, ignore_errors=True)

    def create_database(self, template: str = "template0") -> str:
        """A new database's name."""
        name = f"kbs{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8' STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def run(self, sql: str, database: str = "postgres") -> str:
        """What psql prints for `sql`."""
        return self._run(sql, database).stdout

    def wait_for_clients_to_end(self) -> None:
        """Until no backend of a KBS is left, of one that was killed say."""
        end = time.monotonic() + _START_SECONDS
        while self.run("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'enclave-cc-kbs'").strip() != "0":
            if time.monotonic() > end:
                raise RuntimeError("a KBS's connections do not end")
            time.sleep(0.02)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.directory}&port={self.port}"

    def url_by_tcp(self, name: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}"

    def _run(self, sql: str, database: str = "postgres", *, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(_find("psql")), "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", str(self.directory)]
        done = subprocess.run(
            [*command, "-p", str(self.port), "-d", database, "-c", sql], capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(done.stderr)
        return done

    def _as_user(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*_become(), str(_find(program)), *arguments], capture_output=True, text=True, cwd="/", timeout=120, check=False
        )
        if done.returncode:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise RuntimeError(done.stdout + done.stderr)


def _find(program: str) -> Path:
    """Of the newest version that is installed."""
    found = sorted(_ROOT.glob(f"*/bin/{program}"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError(f"there is no {program} below {_ROOT}: install Debian's postgresql, as tools/setup.sh does")
    return found[-1]


def _become() -> list[str]:
    """Words before a command: another user if we are root, and the end of the command with ours."""
    user = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, "--pdeathsig", "INT"]


def _children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
