"""A node's containerd: its version, its configuration with imports, and what it makes of it."""

from __future__ import annotations

import fnmatch
import glob
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enclave_cc.errors import EnvironmentFault, UsageError, foreign
from enclave_cc.record import record

_DEADLINE = 30.0  # seconds that containerd may take to print something
CRI = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
IMAGES = "io.containerd.cri.v1.images"


@record
class Containerd:
    """`version`: major and minor. `schema`: the version of configuration files that it reads its main file as, 1 to 3."""

    binary: str
    version: tuple[int, int]
    file: Path
    schema: int

    @property
    def replaces_sections(self) -> bool:
        """Up to 1.7, a plug-in's section in an imported file replaces the whole section of the main file."""
        return self.version < (2, 0)

    def plugins(self, document: Mapping[str, Any], *, without: Path | None = None) -> dict[str, Any]:
        """The [plugins] of `document` with its imports, but the file `without`, merged as this containerd merges them.

        Raises `UsageError("bad-config")`.
        """
        merged: dict[str, Any] = {}
        pending: list[tuple[Path, Mapping[str, Any]]] = [(self.file, document)]
        seen = {self.file.resolve(), *([without.resolve()] if without else [])}
        while pending:
            path, content = pending.pop(0)
            for name, section in content.get("plugins", {}).items():
                merged[name] = section if self.replaces_sections else merge(merged.get(name, {}), section)
            for imported in resolve_imports(path, content.get("imports", [])):
                if imported.resolve() not in seen and imported.exists():
                    seen.add(imported.resolve())
                    pending.append((imported, read(imported)))
        return merged

    def dump(self) -> dict[str, Any]:
        """What containerd makes of the file, or does without one. Raises `EnvironmentFault` with its words when it refuses it."""
        words = ["--config", str(self.file), "config", "dump"] if self.file.exists() else ["config", "default"]
        text = run(self.binary, *words)
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise EnvironmentFault(
                "environment", f"containerd printed a configuration that is no TOML: {foreign(error)}"
            ) from error


def merge(below: Any, above: Any) -> Any:
    """Tables by key, everything else replaced."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: merge(below.get(name, {}), value) for name, value in above.items()}}


def run(*command: str) -> str:
    """What a command prints. Raises `EnvironmentFault`: "missing-tool", "environment"."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE, check=False)
    except FileNotFoundError as error:
        raise EnvironmentFault("missing-tool", f"there is no {command[0]}", "Install it, or name it with --binary.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault("environment", f"{command[0]}: {foreign(error)}") from error
    if done.returncode:
        raise EnvironmentFault("environment", f"{' '.join(command)}: {foreign(done.stderr.strip())}")
    return done.stdout


def read(path: Path) -> dict[str, Any]:
    """Raises `UsageError("bad-config")`; a file that is absent is empty."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError("bad-config", f"{path}: {foreign(error)}") from error


def resolve_imports(parent: Path, imports: list[str]) -> list[Path]:
    found = []
    for text in imports:
        path = Path(parent.parent, text)
        found += [Path(name) for name in sorted(glob.glob(str(path)))] if "*" in text else [path]  # noqa: PTH207 - absolute patterns
    return found


def covers(parent: Path, imports: list[str], path: Path) -> bool:
    """Whether the imports of `parent` reach `path` already."""
    return any(fnmatch.fnmatch(str(path), str(Path(parent.parent, text))) for text in imports)


def detect(binary: str, file: Path) -> Containerd:
    """Raises `EnvironmentFault`, `UsageError("bad-config")`; a containerd older than 1.6 is refused."""
    printed = run(binary, "--version")
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d+", printed)
    if not found:
        raise EnvironmentFault("environment", f"{binary} --version tells no version: {foreign(printed)}")
    version = int(found[1]), int(found[2])
    if version < (1, 6):
        raise EnvironmentFault(
            "environment", f"containerd {version[0]}.{version[1]} is too old", "Install containerd 1.6 or newer."
        )
    document = read(file)
    newest = 2 if version < (2, 0) else 3
    schema = document.get("version", 1 if file.exists() and document else newest)
    if schema == 1 and newest == 3:
        schema = 3  # 2.x takes an older one than 2 for its own, and passes over what it does not know in it
    if not isinstance(schema, int) or not 1 <= schema <= newest:
        raise UsageError("bad-config", f"{file}: version {foreign(schema)} is none that containerd {version[0]}.{version[1]} reads")
    return Containerd(binary, version, file, schema)
