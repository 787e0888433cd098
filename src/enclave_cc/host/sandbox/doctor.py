"""What this machine has and lacks for running pods: each check looks at the real thing and says how to get it."""

from __future__ import annotations

import base64
import ctypes
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from enclave_cc.errors import EnclaveCcError, foreign
from enclave_cc.host.sandbox import bundle, cgroups
from enclave_cc.host.sandbox.configuration import Configuration
from enclave_cc.host.sandbox.directories import Directories
from enclave_cc.host.sandbox.runc import Stdio, run_program
from enclave_cc.host.sandbox.spec import PAUSE_PROGRAM, own_capabilities
from enclave_cc.record import record, replace

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REC, _MS_PRIVATE = 1, 16384, 1 << 18
# An EROFS with an empty root directory, as mkfs.erofs makes it: mounting it is the one sure test.
_EMPTY_EROFS = (
    "eNpjYBgFo2AUjFTw6OHXB+Upch+ZgWweBhUGRixqGGloPwsQv3VkYpCG8v8DAbK8CpSWYGCCsyWBbD09vdHIGwWjYBSMglEwCkbBKBgFo4BEAADJRQwK"
)
_PROGRAM_DEADLINE = 10.0


class Verdict(StrEnum):
    """`MISSING` keeps pods from running; `NOTE` is worth knowing."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


@record
class Finding:
    """One line of the report; `fix` only where there is something to do."""

    check: str
    verdict: Verdict
    what: str
    fix: str = ""


def examine(configuration: Configuration) -> list[Finding]:
    """All checks. Raises nothing: a check that fails to run is a finding."""
    checks: list[tuple[str, Callable[[Configuration], Finding]]] = [
        ("root", _check_root),
        ("platform", _check_platform),
        ("sgx", _check_sgx),
        ("runc", _check_runc),
        ("cgroups", _check_cgroups),
        ("fuse", _check_fuse),
        ("erofs", _check_erofs),
        ("overlay", _check_overlay),
        ("pause", _check_pause),
        ("cni", _check_cni),
        ("agent bundle", lambda c: _check_bundle("agent", c.agent_bundle)),
        ("app bundle", lambda c: _check_bundle("app", c.app_bundle)),
        ("kbs", _check_kbs),
        ("space", _check_space),
    ]
    findings = []
    for name, check in checks:
        try:
            findings.append(check(configuration))
        except EnclaveCcError as error:
            findings.append(Finding(name, Verdict.MISSING, error.what, error.fix))
        except OSError as error:
            findings.append(Finding(name, Verdict.MISSING, foreign(error)))
    return findings


def _check_root(_: Configuration) -> Finding:
    lacking = {"SYS_ADMIN", "MKNOD", "SETPCAP", "SYS_CHROOT"} - own_capabilities()
    if os.geteuid() != 0 or lacking:
        return Finding("root", Verdict.MISSING, f"not root, or without {', '.join(sorted(lacking))}", "Run as root.")
    return Finding("root", Verdict.OK, "root with the capabilities that containers need")


def _check_platform(configuration: Configuration) -> Finding:
    if configuration.tee == "simulated":
        return Finding("platform", Verdict.NOTE, "simulated SGX: real attestation, but NO PROTECTION against this machine's root")
    fix = f'Set [platform] tee = "simulated" in {configuration.source}, for development.'
    return Finding("platform", Verdict.MISSING, f"the platform is {configuration.tee!r}, which runs nothing", fix)


def _check_sgx(_: Configuration) -> Finding:
    devices = [name for name in ("/dev/sgx_enclave", "/dev/sgx_provision") if Path(name).exists()]
    if devices:
        return Finding("sgx", Verdict.NOTE, f"{', '.join(devices)}: hardware is there; this version has a simulated back-end only")
    return Finding("sgx", Verdict.NOTE, "no /dev/sgx_enclave: this machine offers no SGX")


def _check_runc(configuration: Configuration) -> Finding:
    output = os.memfd_create("version", os.MFD_CLOEXEC)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        command = [configuration.runc, "--version"]
        try:
            status = run_program(command, Stdio(null, output, null), os.environ, deadline=_PROGRAM_DEADLINE)
        except EnclaveCcError as error:
            return Finding("runc", Verdict.MISSING, error.what, "apt-get install runc")
        os.lseek(output, 0, os.SEEK_SET)
        version = os.read(output, 4096).decode("utf-8", "replace").partition("\n")[0]
    finally:
        os.close(output)
        os.close(null)
    if status != 0:
        return Finding("runc", Verdict.MISSING, f"{configuration.runc} --version failed", "apt-get install runc")
    return Finding("runc", Verdict.OK, foreign(version))


def _check_cgroups(_: Configuration) -> Finding:
    if cgroups.is_unified():
        there = set((cgroups.ROOT / "cgroup.controllers").read_text().split())
        version = "version 2"
    else:
        there = {entry.name for entry in os.scandir(cgroups.ROOT)} if cgroups.ROOT.is_dir() else set()
        version = "version 1"
    lacking = {"memory", "cpu", "pids"} - there
    if lacking:
        fix = "Boot with cgroup_enable=memory, or mount the controllers below /sys/fs/cgroup."
        return Finding("cgroups", Verdict.MISSING, f"{version} without {', '.join(sorted(lacking))}", fix)
    return Finding("cgroups", Verdict.OK, f"{version} with memory, cpu and pids")


def _check_fuse(_: Configuration) -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding("fuse", Verdict.MISSING, f"/dev/fuse: {error.strerror}", "modprobe fuse")
    return Finding("fuse", Verdict.OK, "/dev/fuse opens")


def _check_erofs(_: Configuration) -> Finding:
    """Mounts an empty image from a file, in a mount namespace that ends with the child."""
    with tempfile.TemporaryDirectory(prefix="enclave-cc-doctor-") as scratch:
        image, target = Path(scratch, "image"), Path(scratch, "target")
        image.write_bytes(zlib.decompress(base64.b64decode(_EMPTY_EROFS)))
        target.mkdir()
        child = os.fork()
        if child == 0:
            os._exit(_try_mount(bytes(image), bytes(target)))
        errno = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if errno == 0:
        return Finding("erofs", Verdict.OK, "EROFS mounts straight from a file")
    fix = "modprobe erofs; it needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE."
    return Finding("erofs", Verdict.MISSING, f"EROFS from a file on Linux {platform.release()}: {os.strerror(abs(errno))}", fix)


def _try_mount(image: bytes, target: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return ctypes.get_errno()
    if libc.mount(image, target, b"erofs", _MS_RDONLY, None) != 0:
        return ctypes.get_errno()
    return 0


def _check_overlay(_: Configuration) -> Finding:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines() if line.strip()}
    if "overlay" not in known:
        return Finding("overlay", Verdict.MISSING, "the kernel has no overlayfs loaded", "modprobe overlay")
    return Finding("overlay", Verdict.OK, "overlayfs is there")


def _check_pause(_: Configuration) -> Finding:
    if not PAUSE_PROGRAM.exists():
        return Finding("pause", Verdict.MISSING, f"{PAUSE_PROGRAM} is missing", "apt-get install busybox-static")
    return Finding("pause", Verdict.OK, f"{PAUSE_PROGRAM} holds a pod's namespaces")


def _check_cni(configuration: Configuration) -> Finding:
    fix = "apt-get install containernetworking-plugins iptables"
    lacking = [name for name in ("bridge", "host-local") if not (configuration.network.cni_path / name).exists()]
    lacking += [] if shutil.which("iptables") else ["iptables"]
    if lacking:
        verdict = Verdict.MISSING if configuration.network.default == "pod" else Verdict.NOTE
        return Finding("cni", verdict, f"--network pod needs {', '.join(lacking)}", fix)
    return Finding("cni", Verdict.OK, f"bridge and host-local in {configuration.network.cni_path}")


def _check_bundle(role: str, directory: Path) -> Finding:
    """Every file is read: the measurement of what lies there is the one it was built with."""

    from enclave_cc.simulator.bundle import list_files
    from enclave_cc.wire.sgx import manifest

    check = f"{role} bundle"
    found = bundle.read_bundle(directory, role)
    measured = manifest.measure(replace(found.make_manifest(), files=list_files(found.root)).encode()).hex()
    if measured != found.mr_enclave:
        fix = f"Build it again: enclave-cc bundle build {role} --out {directory}"
        return Finding(check, Verdict.MISSING, f"{directory} is not as built: it measures {measured}, not {found.mr_enclave}", fix)
    note = ", for debug enclaves, which a KBS refuses" if found.debug else ""
    return Finding(check, Verdict.NOTE if found.debug else Verdict.OK, f"MRENCLAVE {measured}{note}")


def _check_kbs(configuration: Configuration) -> Finding:
    if not configuration.kbs_url:
        fix = f"Set [kbs] url and certificate in {configuration.source}; the owner has them from `enclave-cc kbs init`."
        return Finding("kbs", Verdict.MISSING, "no KBS is configured", fix)
    from enclave_cc.transport.https import HttpsClient

    try:
        pem = configuration.kbs_certificate.read_text() if configuration.kbs_certificate is not None else None
    except (OSError, ValueError):
        what = f"{configuration.kbs_certificate} is not a readable PEM file"
        return Finding("kbs", Verdict.MISSING, what, f"Set [kbs] certificate in {configuration.source} to the owner's kbs.crt.")
    client = HttpsClient(configuration.kbs_url, certificate_pem=pem, deadline=configuration.deadlines.kbs)
    try:
        client.request("GET", "/kbs/v0/resource/default/doctor/doctor")  # refused without a token: that is an answer
    finally:
        client.close()
    pinned = "with the pinned certificate" if pem else "with a certificate of a public authority"
    return Finding("kbs", Verdict.OK, f"{configuration.kbs_url} answers {pinned}")


def _check_space(configuration: Configuration) -> Finding:
    places = Directories.of(configuration)
    there = next(path for path in (places.cache, *places.cache.parents) if path.exists())
    free = shutil.disk_usage(there).free
    verdict = Verdict.OK if free > 1 << 30 else Verdict.NOTE
    return Finding("space", verdict, f"{free / (1 << 30):.1f} GiB free for sealed images in {places.cache}")
