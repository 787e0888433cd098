"""Builds the agent and the app bundle: root file system, manifest, SIGSTRUCT and reference values.

A bundle directory holds `rootfs/`, `manifest.json` (what is measured), `sigstruct.bin`, `reference.json` and
`provenance.json` (`bundle_provenance`). The
measurement covers bytes, modes and paths only, and every input is fixed (Debian's packages, hash-locked wheels, our
source): the same inputs give the same MRENCLAVE in any directory, on any machine.

The two identities name each other without a circle: the app accepts any agent of the same signer and product (its
ISVSVN not below the app's own), the agent accepts the exact MRENCLAVE of one app bundle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import enclave_cc
from enclave_cc.crypto.rsa3072 import SigningKey
from enclave_cc.errors import EnvironmentFault, UsageError
from enclave_cc.owner.reference import bundle_bytecode, bundle_closure, bundle_provenance, bundle_python, bundle_wheels
from enclave_cc.owner.reference.bundle_tree import BundleTree
from enclave_cc.record import record
from enclave_cc.wire.sgx import manifest as enclave_manifest
from enclave_cc.wire.sgx import sigstruct
from enclave_cc.wire.sgx.identity import EnclaveIdentity

PRODUCT_IDS = {"agent": 1, "app": 2}
HEAP_SIZES = {"agent": 1 << 30, "app": 256 << 20}
PROGRAMS = {"agent": "enclave_cc.enclave.agent.__main__", "app": "enclave_cc.enclave.boot.__main__"}
SITE = "/usr/lib/enclave-cc"
# The name shows in a process listing which enclave it is.
STARTS = {role: f"{SITE}/{program.removesuffix('.__main__')}.pyc" for role, program in PROGRAMS.items()}
# -I: no environment, no user site; -S: no site; utf8: no look at the locale
INTERPRETER_OPTIONS = ("-I", "-S", "-B", "-X", "utf8")
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
# glibc's allocator keeps an arena per thread; two are enough and save tens of MB in the agent's pipeline
ENVIRONMENTS = {"agent": {**ENVIRONMENT, "MALLOC_ARENA_MAX": "2"}, "app": ENVIRONMENT}

_MOUNT_POINTS = {
    "agent": ("/proc", "/dev", "/sys", "/run/enclave-cc", "/var/lib/enclave-cc/cache", "/tmp"),  # noqa: S108 - paths of the enclave
    "app": ("/proc", "/dev", "/sys", "/run", "/var/lib/enclave-cc/cache/blobs", "/tmp", "/mnt"),  # noqa: S108
}
_SIGSTRUCT_DATE = 20250101  # fixed: the day of a build must not change its bytes
_CA_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@record(kw_only=True)
class BundleInputs:
    """What a bundle is built from. `app` is the app bundle that an agent accepts; without it, any app of the signer."""

    role: str
    key: Path
    payload: Path
    libos: str = "simulated"
    app: Path | None = None
    debug: bool = False
    isv_svn: int = 1
    wheel_cache: Path | None = None
    builder: str = bundle_provenance.DEFAULT_BUILDER

    def __post_init__(self) -> None:
        if self.role not in PRODUCT_IDS:
            raise UsageError("usage", f"there is no bundle role {self.role!r}")
        if self.libos != "simulated":
            raise UsageError("usage", f"there is no back-end for the LibOS {self.libos!r}", "Use --libos simulated.")
        if self.app is not None and self.role != "agent":
            raise UsageError("usage", "only an agent bundle is built for an app bundle", "Leave --app away.")
        if not 0 <= self.isv_svn < 1 << 16:
            raise UsageError("usage", "an ISVSVN has 16 bits")


def default_payload() -> Path:
    """The `payload/measured` directory of the source tree that this program runs from."""
    return Path(enclave_cc.__file__).resolve().parents[2] / "payload" / "measured"


def default_key() -> Path:
    return Path.home() / ".config" / "enclave-cc" / "bundle.pem"


def build_bundle(inputs: BundleInputs, out: Path) -> dict[str, object]:
    """Builds the bundle at `out`, which must not exist or be a bundle; returns its reference values.

    Nothing is at `out` before the bundle is whole. Raises `UsageError` for inputs that do not fit, `EnvironmentFault`
    when Debian's Python or the wheels cannot be had.
    """
    if out.exists() and not (out / "reference.json").is_file() and any(out.iterdir()):
        raise UsageError("already-exists", f"{out} is there and is no bundle", "Choose another --out.")
    started = int(time.time())
    key = _load_key(inputs.key)
    tree = build_tree(inputs, key)
    manifest = build_manifest(inputs.role, tree)
    encoded = manifest.encode()
    signed = sigstruct.sign(
        key,
        mr_enclave=enclave_manifest.measure(encoded),
        isv_prod_id=PRODUCT_IDS[inputs.role],
        isv_svn=inputs.isv_svn,
        date=_SIGSTRUCT_DATE,
        allow_debug=inputs.debug,
    )
    reference = {
        "role": inputs.role,
        "libos": inputs.libos,
        "mr_enclave": signed.enclave_hash.hex(),
        "mr_signer": signed.mr_signer.hex(),
        "isv_prod_id": signed.isv_prod_id,
        "isv_svn": signed.isv_svn,
        "debug": inputs.debug,
        "inputs": {
            "debian": bundle_python.list_versions(),
            "wheels": sorted(wheel.name for wheel in _fetch_wheels(inputs)),
            "enclave_cc": enclave_cc.__version__,
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        scratch.chmod(0o755)
        (scratch / "rootfs").mkdir(mode=0o755)
        tree.write(scratch / "rootfs")
        (scratch / "manifest.json").write_bytes(encoded)
        (scratch / "sigstruct.bin").write_bytes(signed.encode())
        (scratch / "reference.json").write_text(json.dumps(reference, indent=2, sort_keys=True) + "\n")
        build = bundle_provenance.make_build(
            reference,
            inputs.payload / inputs.role / "requirements.txt",
            inputs.app,
            builder=inputs.builder,
            started=started,
            finished=int(time.time()),
        )
        provenance = bundle_provenance.make_statement(scratch, reference, build)
        (scratch / bundle_provenance.PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2, sort_keys=True) + "\n")
        _replace(scratch, out)
    except OSError as error:
        raise EnvironmentFault("environment", f"the bundle cannot be written to {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return reference


def build_tree(inputs: BundleInputs, key: SigningKey) -> BundleTree:
    """Everything that the enclave can open, and thus all that is measured."""
    tree = BundleTree()
    sources: dict[str, bytes] = {}
    programs = [bundle_python.INTERPRETER]
    for path in bundle_python.list_library(inputs.role):
        file = Path(bundle_python.LIBRARY, path)
        if path.endswith(".so"):
            tree.add_file(str(file), file.read_bytes())
            programs.append(file)
        else:
            sources[str(file)] = file.read_bytes()
    extensions: dict[str, bytes] = {}
    for path, content in bundle_wheels.read_wheels(_fetch_wheels(inputs)):
        if path.endswith(".py"):
            sources[f"{SITE}/{path}"] = content
        else:
            extensions[path] = content
            tree.add_file(f"{SITE}/{path}", content)
    package = Path(enclave_cc.__file__).resolve().parent
    for file in bundle_closure.compute_closure(PROGRAMS[inputs.role], package).values():
        sources[f"{SITE}/enclave_cc/{file.relative_to(package)}"] = file.read_bytes()
    sources[STARTS[inputs.role].removesuffix("c")] = (inputs.payload / inputs.role / "start.py").read_bytes()
    for path, content in bundle_bytecode.compile_sources(bundle_python.INTERPRETER, sources).items():
        tree.add_file(path, content)
    tree.add_file(str(bundle_python.INTERPRETER), bundle_python.INTERPRETER.read_bytes(), program=True)
    for path, library in _list_libraries(programs, extensions).items():
        tree.add_file(path, library.read_bytes(), program=True)
    for path in _MOUNT_POINTS[inputs.role]:
        tree.add_directory(path)
    _add_settings(tree, inputs, key)
    return tree


def _list_libraries(programs: list[Path], extensions: dict[str, bytes]) -> dict[str, Path]:
    """Shared libraries of the machine that programs, and the wheels' extension modules, need."""
    with tempfile.TemporaryDirectory() as scratch:
        placed = []
        for path, content in extensions.items():  # in their own layout, since a wheel may point into itself
            place = Path(scratch, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            placed.append(place)
        found = bundle_python.list_shared_libraries([*programs, *placed])
        return {path: library for path, library in found.items() if not path.startswith(scratch)}


def build_manifest(role: str, tree: BundleTree) -> enclave_manifest.Manifest:
    letters = {"file": "f", "link": "l", "directory": "d"}
    files = []
    for path, node in tree.items():
        value = hashlib.sha256(node.content).hexdigest() if node.content is not None else node.target or ""
        files.append(enclave_manifest.File(path.lstrip("/"), letters[node.kind], node.mode, value))
    return enclave_manifest.Manifest(
        role=role,
        entrypoint=(str(bundle_python.INTERPRETER), *INTERPRETER_OPTIONS, STARTS[role]),
        environment=ENVIRONMENTS[role],
        files=tuple(sorted(files, key=lambda file: file.path)),
        heap_size=HEAP_SIZES[role],
    )


def _add_settings(tree: BundleTree, inputs: BundleInputs, key: SigningKey) -> None:
    platform = f'tee = "{inputs.libos}"\n'.encode()
    if inputs.role == "app":
        agent = EnclaveIdentity(
            mr_signer=sigstruct.mr_signer(key.modulus), isv_prod_id=PRODUCT_IDS["agent"], min_isv_svn=inputs.isv_svn
        )
        tree.add_file("/etc/enclave-cc/boot.toml", platform)
        tree.add_file("/etc/enclave-cc/agent-identity.json", agent.encode())
        return
    tree.add_file("/etc/enclave-cc/agent.toml", platform)
    tree.add_file("/etc/enclave-cc/app-identity.json", _read_app_identity(inputs, key).encode())
    tree.add_file("/etc/nsswitch.conf", b"hosts: files dns\n")
    # bind mounts need a file to lie on; what the node mounts there is host-authored
    tree.add_file("/etc/resolv.conf", b"")
    tree.add_file("/etc/hosts", b"")
    if not _CA_CERTIFICATES.is_file():
        raise EnvironmentFault("missing-tool", f"{_CA_CERTIFICATES} is missing", "apt-get install ca-certificates")
    tree.add_file(str(_CA_CERTIFICATES), _CA_CERTIFICATES.read_bytes())


def _read_app_identity(inputs: BundleInputs, key: SigningKey) -> EnclaveIdentity:
    if inputs.app is None:
        return EnclaveIdentity(
            mr_signer=sigstruct.mr_signer(key.modulus), isv_prod_id=PRODUCT_IDS["app"], min_isv_svn=inputs.isv_svn
        )
    try:
        app = json.loads((inputs.app / "reference.json").read_bytes())
        if app["role"] != "app":
            raise UsageError("usage", f"{inputs.app} is no app bundle")
        return EnclaveIdentity(mr_enclave=bytes.fromhex(app["mr_enclave"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError("not-found", f"{inputs.app} is no app bundle", "Build it first: enclave-cc bundle build app.") from error


def _any_of_signer(role: str, inputs: BundleInputs, key: SigningKey) -> EnclaveIdentity:
    return EnclaveIdentity(mr_signer=sigstruct.mr_signer(key.modulus), isv_prod_id=PRODUCT_IDS[role], min_isv_svn=inputs.isv_svn)


def _fetch_wheels(inputs: BundleInputs) -> list[Path]:
    requirements = inputs.payload / inputs.role / "requirements.txt"
    if not requirements.is_file():
        raise UsageError("not-found", f"{requirements} is missing", "Run from the source tree, or give --payload.")
    return bundle_wheels.fetch_wheels(requirements, inputs.wheel_cache or bundle_wheels.default_cache())


def _load_key(path: Path) -> SigningKey:
    """The bundle signing key, made when there is none (0600)."""
    if path.exists():
        return SigningKey.from_pem(path.read_bytes())
    key = SigningKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # 0600 from its birth
        file.write(key.to_pem())
    try:
        Path(file.name).rename(path)
    except OSError:
        Path(file.name).unlink(missing_ok=True)
        raise
    return key


def _replace(scratch: Path, out: Path) -> None:
    """Puts the finished bundle in place; a present one is moved aside first and removed after."""
    if not out.exists():
        scratch.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    out.rename(old / "bundle")
    scratch.rename(out)
    shutil.rmtree(old, ignore_errors=True)
