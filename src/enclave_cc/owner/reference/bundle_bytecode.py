"""Python sources to sourceless `.pyc` files that come out the same on every machine.

One fresh interpreter, the very one that goes into the bundle, compiles all sources in one sorted run: marshal's
back references depend on which strings the process has interned before, so the process's history must be the
input alone. The hash seed is fixed, no path of the building machine is seen, docstrings and asserts are left out
(a measured program keeps no check in an assert).
"""

from __future__ import annotations

import marshal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from enclave_cc.errors import EnvironmentFault, UsageError, foreign

_COMPILER = """
import _imp, marshal, sys
from importlib.util import MAGIC_NUMBER
jobs = marshal.load(sys.stdin.buffer)
RAW = int.from_bytes(MAGIC_NUMBER, 'little')
done = []
for name, source in jobs:
    code = compile(source, name, 'exec', dont_inherit=True, optimize=2)
    head = MAGIC_NUMBER + (1).to_bytes(4, 'little') + _imp.source_hash(RAW, source)
    done.append(head + marshal.dumps(code))
    del code
marshal.dump(done, sys.stdout.buffer)
"""


def compile_sources(interpreter: Path, sources: Mapping[str, bytes], *, deadline: float = 300.0) -> dict[str, bytes]:
    """`path/name.py` -> source becomes `path/name.pyc` -> unchecked-hash pyc (PEP 552).

    Raises `UsageError` when a source does not compile, `EnvironmentFault` when the interpreter fails.
    """
    jobs = sorted(sources.items())
    try:
        done = subprocess.run(
            [str(interpreter), "-s", "-S", "-P", "-B", "-c", _COMPILER],
            input=marshal.dumps(jobs),
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            capture_output=True,
            timeout=deadline,
            check=False,
        )
    except OSError as error:
        raise EnvironmentFault("missing-tool", f"{interpreter} does not run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault("deadline", f"compiling {len(jobs)} sources took more than {deadline:g} s") from error
    if done.returncode:
        last = done.stderr.strip().rpartition(b"\n")[2]
        raise UsageError("usage", f"a source of the bundle does not compile: {foreign(last)}", "Correct the source.")
    compiled = marshal.loads(done.stdout)  # noqa: S302 - our own compiler's answer
    return {name.removesuffix(".py") + ".pyc": code for (name, _), code in zip(jobs, compiled, strict=True)}
