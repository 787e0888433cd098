"""Debian's CPython 3.11 for a bundle: interpreter, pruned standard library, and the shared libraries they need."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, foreign

INTERPRETER = Path("/usr/bin/python3.11")
LIBRARY = "/usr/lib/python3.11"
PACKAGES = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib")
LOADER = "/lib64/ld-linux-x86-64.so.2"

# Not needed by either program: user interfaces, build and test tools, servers, databases, rare codecs, and asyncio,
# which the measured programs do without.
_PRUNED = re.compile(
    r"^(?:asyncio|config-[^/]*|curses|dbm|distutils|ensurepip|idlelib|lib2to3|msilib|multiprocessing|pydoc_data|sqlite3|test"
    r"|html|tkinter|turtledemo|unittest|venv|wsgiref|xml|xmlrpc|zoneinfo|__phello__|__pycache__)/"
    r"|^(?:__hello__|_aix_support|_bootsubprocess|_osx_support|_pydecimal|_pyio|_sitebuiltins|_sysconfigdata[^/]*"
    r"|_distutils_system_mod|aifc|antigravity|asynchat|asyncore|bdb|cProfile|cgi|cgitb|chunk|cmd|code|codeop|colorsys|compileall"
    r"|crypt|doctest|filecmp|fileinput|ftplib|getopt|graphlib|imaplib|imghdr|imp|mailbox|mailcap|modulefinder|netrc|nntplib"
    r"|optparse|pdb|pickletools|pipes|plistlib|poplib|profile|pstats|py_compile|pyclbr|pydoc|rlcompleter|sched|shelve|site"
    r"|sitecustomize|smtpd|smtplib|sndhdr|statistics|sunau|symtable|sysconfig|tabnanny|telnetlib|this|timeit|trace|turtle|uu|wave"
    r"|webbrowser|xdrlib|zipapp|http/cookiejar|http/server|json/tool|logging/config|logging/handlers|urllib/robotparser)\.py$"
    r"|^lib-dynload/(?:_asyncio|_codecs_|_crypt|_ctypes_test|_curses|_dbm|_lsprof|_multibytecodec|_multiprocessing"
    r"|_posixshmem|_sqlite3|_test|_tkinter|_xx|_zoneinfo|audioop|nis|ossaudiodev|readline|xx)[^/]*$"
    r"|^encodings/(?!__init__|aliases|ascii|idna|latin_1|punycode|raw_unicode_escape|unicode_escape|utf_)[^/]*$"
)
# boot speaks no TLS and hashes little: without OpenSSL it starts faster, and there is less to measure.
_PRUNED_FOR_APP = re.compile(r"^lib-dynload/(?:_ssl|_hashlib|_bz2|_lzma|_decimal)\.[^/]*$|^ssl\.py$")


def list_library(role: str) -> list[str]:
    """Paths below `LIBRARY` of the modules and extension modules that a bundle of `role` carries, sorted."""
    paths = {line.removeprefix(LIBRARY + "/") for line in _list_packages() if line.startswith(LIBRARY + "/")}
    kept = [path for path in paths if path.endswith((".py", ".so")) and not _PRUNED.search(path)]
    if role == "app":
        kept = [path for path in kept if not _PRUNED_FOR_APP.search(path)]
    return sorted(kept)


def list_versions() -> dict[str, str]:
    """Debian package -> version, for the provenance of a bundle."""
    lines = _run(["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", *PACKAGES]).splitlines()
    return dict(line.split(" ", 1) for line in sorted(lines))


def list_shared_libraries(programs: Iterable[Path]) -> dict[str, Path]:
    """Path inside the enclave -> file, of every shared library that the loader takes for `programs` (ELF files).

    Asked of the machine's own loader, file by file, because it alone knows its search order.
    """
    found: dict[str, Path] = {LOADER: Path(LOADER).resolve()}
    for program in programs:
        for line in _run([LOADER, "--list", str(program)]).splitlines():
            place = re.match(r"^\s*\S+ => (/\S+) \(0x", line)
            if place:
                path = place[1].replace("/usr/lib/x86_64-linux-gnu/", "/lib/x86_64-linux-gnu/")
                found[path] = Path(place[1]).resolve()
            elif "not found" in line:
                raise EnvironmentFault("environment", f"{program} needs a library that is not here: {foreign(line.strip())}")
    return dict(sorted(found.items()))


def _list_packages() -> list[str]:
    if not INTERPRETER.is_file():
        raise EnvironmentFault(
            "missing-tool", f"{INTERPRETER} is missing", "apt-get install python3.11-minimal libpython3.11-stdlib"
        )
    return _run(["dpkg-query", "--listfiles", *PACKAGES]).splitlines()


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except OSError as error:
        raise EnvironmentFault("missing-tool", f"{command[0]} does not run: {error.strerror}") from error
    if done.returncode:
        raise EnvironmentFault("environment", f"{command[0]} failed: {foreign(done.stderr.strip())}")
    return done.stdout.decode("utf-8", "surrogateescape")
