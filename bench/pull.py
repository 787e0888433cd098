"""Publish, and pull to ready, against skopeo and umoci on the same image and registry.

Ours: `image publish` (encrypt, push, sign, register), then `run IMAGE true` with an empty cache: attest, verify, download,
decrypt, unpack, seal, mount, start. Peers: `skopeo copy --encryption-key`, then `skopeo copy --decryption-key` and
`umoci unpack`, which write plaintext to the disk and start nothing. Each side is timed until the disk has its data (sync).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import testbed as testbeds
from bench.report import print_table, verdict

SOURCES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/python3.11", "/usr/share", "/usr/bin", "/usr/lib/gcc", "/usr/include")


def timed(action: Callable[[], object]) -> float:
    os.sync()
    began = time.perf_counter()
    action()
    os.sync()
    return time.perf_counter() - began


def collect_tree(root: Path, megabytes: int) -> int:
    """Real files of this machine until there are `megabytes` of them; returns the bytes."""
    total = 0
    for source in SOURCES:
        for path in sorted(Path(source).rglob("*")):
            if total >= megabytes << 20:
                return total
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 64 << 20:
                target = root / str(path).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
                total += path.stat().st_size
    return total


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench pull", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="ecc-", dir="/var/tmp"))
    site = Path(tempfile.mkdtemp(prefix="ecc-", dir="/tmp"))
    try:
        with testbeds.running(site / "s") as testbed:
            return compare(testbed, scratch, options)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(site, ignore_errors=True)


def compare(testbed: testbeds.Testbed, scratch: Path, options: argparse.Namespace) -> int:
    layout = scratch / "layout"
    source = testbeds.make_image(layout, "big", testbeds.busybox_root(scratch / "busybox"), "--config.cmd", "/bin/true")
    total = collect_tree(scratch / "tree", options.megabytes)
    entries = sorted((scratch / "tree/usr").rglob("*"))
    files = [p for p in entries if p.is_file()]
    for number in range(options.layers):
        part = scratch / f"part{number}"
        for path in files[number :: options.layers]:
            target = part / path.relative_to(scratch / "tree")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        subprocess.run(["umoci", "--log", "error", "insert", "--image", source, str(part), "/"], check=True)
        shutil.rmtree(part)
    print(f"image: {total / 1e6:.0f} MB in {len(files)} files, {options.layers + 1} layers (gzip by umoci)", flush=True)
    keys = scratch / "keys"
    keys.mkdir()
    subprocess.run(["openssl", "genrsa", "-out", keys / "private.pem", "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", keys / "private.pem", "-pubout", "-out", keys / "public.pem"], check=True, capture_output=True
    )
    theirs = f"docker://{testbed.registry_host}/theirs:latest"
    skopeo = ["skopeo", "copy", "--quiet"]

    def skopeo_publish() -> None:
        command = [*skopeo, "--dest-tls-verify=false", "--encryption-key", f"jwe:{keys}/public.pem", f"oci:{source}", theirs]
        subprocess.run(command, check=True)

    def skopeo_pull() -> None:
        for name in ("pulled", "bundle"):
            shutil.rmtree(scratch / name, ignore_errors=True)
        command = [
            *skopeo,
            "--src-tls-verify=false",
            "--decryption-key",
            f"{keys}/private.pem",
            theirs,
            f"oci:{scratch}/pulled:big",
        ]
        subprocess.run(command, check=True)
        subprocess.run(
            ["umoci", "--log", "error", "unpack", "--image", f"{scratch}/pulled:big", str(scratch / "bundle")], check=True
        )

    def our_pull() -> None:
        shutil.rmtree(testbed.state / "cache", ignore_errors=True)
        testbed.cli("run", "--rm", "--quiet", testbed.reference("ours"))

    ours_publish, theirs_publish, ours_pull, theirs_pull = [], [], [], []
    for _ in range(options.repeat):
        theirs_publish.append(timed(skopeo_publish))
        ours_publish.append(timed(lambda: testbed.publish(source, "ours")))
        theirs_pull.append(timed(skopeo_pull))
        ours_pull.append(timed(our_pull))
    best = {"publish": (min(ours_publish), min(theirs_publish)), "pull to ready": (min(ours_pull), min(theirs_pull))}
    rows = [
        [name, ours, theirs, f"{theirs / ours:.1f}x", f"{total / 1e6 / ours:.0f}", f"{total / 1e6 / theirs:.0f}"]
        for name, (ours, theirs) in best.items()
    ]
    print_table(["best of " + str(options.repeat), "ours s", "skopeo(+umoci) s", "ratio", "ours MB/s", "theirs MB/s"], rows)
    verdict("pull to ready against skopeo + umoci", min(theirs_pull) / min(ours_pull), 2)
    return 0
