"""What a bundle's build says of itself: which commit, locks, packages and app bundle went into it, by which builder.

The statement lies beside the bundle as `provenance.json`, and signed as `reference.dsse.json`. Neither is measured, so a
build's date changes no measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import enclave_cc
from enclave_cc.crypto.signing_key import SigningKey
from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.reference import statement
from enclave_cc.owner.reference.statement import Build, Dependency

PROVENANCE_FILE, STATEMENT_FILE = "provenance.json", "reference.dsse.json"
DEFAULT_BUILDER = "urn:enclave-cc:bundle-build"
_GIT_SECONDS = 10


def make_build(reference: Mapping[str, Any], lock: Path, app: Path | None, *, builder: str, started: int, finished: int) -> Build:
    """The circumstances of a build whose `reference.json` is `reference`."""
    dependencies = _find_source()
    dependencies.append(Dependency(f"lock:{reference['role']}/{lock.name}", {"sha256": _hash(lock)}))
    for name, version in sorted(reference["inputs"]["debian"].items()):
        dependencies.append(Dependency(f"pkg:deb/debian/{name}@{version}", {}))
    if app is not None:
        dependencies.append(Dependency("bundle:app", {"sha256": _hash(app / "manifest.json")}))
    return Build(builder=builder, started=started, finished=finished, dependencies=dependencies)


def make_statement(bundle: Path, reference: Mapping[str, Any], build: Build) -> dict[str, Any]:
    """The statement about the bundle directory `bundle`."""
    return statement.make_statement(reference, _hash(bundle / "manifest.json"), build)


def sign_bundle(bundle: Path, key: SigningKey, *, expires: int | None = None) -> Path:
    """Signs the bundle's `provenance.json`, once it is sure that it is of this bundle; returns the envelope's path.

    Raises `UsageError`: "not-found" or "usage", `EnvironmentFault`.
    """
    try:
        document = json.loads((bundle / PROVENANCE_FILE).read_bytes())
        (subject,) = document["subject"]
        reference = json.loads((bundle / "reference.json").read_bytes())
        same = subject["digest"] == {"sha256": _hash(bundle / "manifest.json"), "mrEnclave": reference["mr_enclave"]}
    except OSError as error:
        raise UsageError("not-found", f"{bundle} is no bundle with a {PROVENANCE_FILE}", "Build it again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("usage", f"{bundle / PROVENANCE_FILE} is no statement about a bundle", "Build it again.") from error
    if not same:
        raise UsageError("usage", f"{bundle / PROVENANCE_FILE} is of another bundle than the one beside it", "Build it again.")
    out = bundle / STATEMENT_FILE
    signed = statement.sign(document, key, expires=expires)
    try:
        with tempfile.NamedTemporaryFile(dir=bundle, prefix=f".{STATEMENT_FILE}-", delete=False) as file:
            file.write(signed)
        scratch = Path(file.name)
        try:
            scratch.chmod(0o644)
            scratch.rename(out)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EnvironmentFault("environment", f"{out} cannot be written: {error.strerror}") from error
    return out


def _find_source() -> list[Dependency]:
    """The commit of the source tree that this program runs from, and whether it was changed; nothing without git."""
    root = Path(enclave_cc.__file__).resolve().parents[2]
    commit = _ask_git(root, "rev-parse", "HEAD")
    if commit is None or not (root / ".git").exists():
        return []
    changed = "+changed" if _ask_git(root, "status", "--porcelain", "--untracked-files=no", "--", "src", "payload") else ""
    return [Dependency(f"git:enclave-cc{changed}", {"gitCommit": commit})]


def _ask_git(root: Path, *words: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, timeout=_GIT_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("ascii", "replace").strip() if done.returncode == 0 else None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
