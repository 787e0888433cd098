"""`make demo`: an ordinary image is encrypted, signed, pushed, and run in an app enclave, told as a story.

Everything is real (registry, KBS over HTTPS, containers through runc, sealed file system) but the SGX hardware, which
is simulated. Exits 0 only when each step did what the story says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from testbed import Testbed, busybox_root, make_image, running

console = Console(highlight=False, soft_wrap=True)
BEGIN = time.monotonic()


def chapter(title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]({time.monotonic() - BEGIN:.1f} s)[/dim]")


def say(what: str, text: object = "") -> None:
    console.print(f"  {what:<12} {text}", markup=False)


def fail(text: str) -> None:
    console.print(f"\nThe demo failed: {text}", style="bold red", markup=False)
    sys.exit(1)


def make_app(directory: Path, canary: str) -> str:
    """An ordinary OCI image: busybox, a program, and a file that nobody but the owner may read."""
    root = busybox_root(directory / "root")
    (root / "opt").mkdir()
    (root / "opt/model.bin").write_text(canary * 200)
    (root / "opt/app").write_text(
        '#!/bin/sh\necho "hello $GREETING, I am $(id -un) in $(pwd)"\n'
        'echo "my secret file has $(wc -c < /opt/model.bin) bytes, SHA-256 $(sha256sum < /opt/model.bin | head -c 16)..."\n'
        'echo "my root is $(grep " / " /proc/mounts | head -n 1)"\n'
    )
    (root / "opt/app").chmod(0o755)
    return make_image(
        directory / "image",
        "demo",
        root,
        "--config.entrypoint",
        "/opt/app",
        "--config.user",
        "app",
        "--config.workingdir",
        "/home/app",
    )


def tell_kbs(testbed: Testbed, since: int) -> int:
    """What the KBS decided after line `since` of its log; returns the line to go on from."""
    lines = testbed.kbs_log.read_text().splitlines()
    for line in lines[since:]:
        event = json.loads(line)
        if event["event"] == "allow" and event["stage"] == "attest":
            for enclave in event["evidence"]:
                simulated = ", simulated" if enclave["simulated"] else ""
                say("attested", f"MRENCLAVE {enclave['mr_enclave'][:16]}..., a reference value; root {enclave['root']}{simulated}")
                say("", f"TCB {enclave['tcb_status']}; judged {enclave['status']} by the attestation policy")
        elif event["event"] == "allow":
            say("released", f"{event['resource']}, because every part of the attester is {event['attester'][0]['status']}")
        elif event["event"] == "deny":
            say("denied", f"{event['stage']} of {event.get('resource', 'evidence')}: {event['code']} (id {event['id']})")
    return len(lines)


def explain_last_denial(testbed: Testbed) -> None:
    """What the owner, and nobody else, is told."""
    denials = [json.loads(line) for line in testbed.kbs_log.read_text().splitlines() if '"event":"deny"' in line]
    say("$", f"enclave-cc explain {denials[-1]['id']}   (the owner)")
    for line in testbed.cli("explain", denials[-1]["id"]).stdout.splitlines():
        say("", line)


def main() -> int:
    if os.geteuid():
        console.print("error environment: the demo makes containers and mounts. Run it as root.", style="bold red")
        return 4
    console.print("[bold]enclave-cc demo[/bold]")
    console.print("An ordinary image is encrypted, signed and pushed by its owner, then run by a node that nobody trusts.")
    with tempfile.TemporaryDirectory(prefix="ecc-", dir="/tmp") as scratch:
        with running(Path(scratch) / "s") as testbed:
            return tell(testbed, Path(scratch))


def tell(testbed: Testbed, scratch: Path) -> int:
    canary = "CANARY-" + os.urandom(12).hex()

    chapter("1. A site on this machine")
    say("registry", f"docker-registry at {testbed.registry_host}")
    say("KBS", f"{testbed.kbs_url}, its certificate pinned by the agent")
    say("platform", "SIMULATED SGX: every check is real, but root of this machine could read its memory")
    reference = json.loads((testbed_bundles(testbed) / "agent/reference.json").read_text())
    say("agent", f"MRENCLAVE {reference['mr_enclave'][:32]}... (the KBS knows it as a reference value)")

    chapter("2. The owner publishes an image")
    source = make_app(scratch / "owner", canary)
    say("image", f"made by umoci; /opt/model.bin holds a canary, {canary[:14]}...")
    began = time.monotonic()
    image = testbed.publish(source, "demo", "--allow", "env")
    say("published", f"{image}: encrypted, pushed, signed, key registered in the KBS ({time.monotonic() - began:.1f} s)")
    shown = json.loads(testbed.cli("image", "inspect", image, "--insecure", "--json").stdout)
    for layer in shown["layers"]:
        say("layer", f"{layer['digest'][:19]}...  {layer['media_type'].rpartition('.')[2]}")

    chapter("3. The node runs it")
    say("$", f"enclave-cc run --rm -e GREETING=world {image}")
    seen = log_length(testbed)
    began = time.monotonic()
    done = testbed.cli("run", "--rm", "-e", "GREETING=world", image, check=False)
    took = time.monotonic() - began
    for line in done.stdout.splitlines():
        say("app says", line)
    if done.returncode or "hello world" not in done.stdout:
        fail(f"the run exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    say("exit code", f"{done.returncode} after {took:.2f} s")

    chapter("4. What the KBS did meanwhile")
    seen = tell_kbs(testbed, seen)

    chapter("5. It runs again: the sealed cache saves the work, never the asking")
    began = time.monotonic()
    testbed.cli("run", "--rm", "--quiet", "-e", "GREETING=again", image)
    say("again", f"{time.monotonic() - began:.2f} s, image cached as ciphertext")
    seen = tell_kbs(testbed, seen)

    chapter("6. What a hostile operator meets")
    attempts = [
        ("another command", lambda: testbed.cli("run", "--rm", "--quiet", image, "cat", "/opt/model.bin", check=False)),
        ("a changed agent", lambda: run_with_changed_agent(testbed, scratch, image)),
        ("an unsigned copy", lambda: run_unsigned(testbed, source)),
    ]
    for name, attempt in attempts:
        refused = attempt()
        if refused.returncode == 0:
            fail(f"{name} was not refused:\n{refused.stdout}")
        say(name, refused.stderr.strip().splitlines()[-1])
        if name == "a changed agent":
            explain_last_denial(testbed)

    chapter("7. Is any plaintext on a disk?")
    found = testbed.find_plaintext(canary.encode())
    searched = [testbed.state, testbed.run_directory, testbed.registry_directory, testbed.kbs_directory]
    say("searched", ", ".join(p.name for p in searched))
    if found:
        fail(f"the canary was found in {found}")
    # A search that cannot find is no proof: the same search must find the canary in the owner's own tree.
    if not testbed.find_plaintext(canary.encode(), scratch / "owner"):
        fail("the search does not find the canary where it is")
    say("canary", "nowhere in state, run, registry and KBS directories (and found in the owner's own tree)")
    left = {kind: items for kind, items in testbed.leftovers().items() if items}
    if left:
        fail(f"left behind: {left}")
    say("left behind", "no mount, process, cgroup, loop device or pod directory")
    console.print("\n[bold green]The demo did all that it said.[/bold green] README.md shows how to run an image of your own.")
    return 0


def testbed_bundles(testbed: Testbed) -> Path:
    import tomllib

    return Path(tomllib.loads(testbed.configuration.read_text())["bundles"]["agent"]).parent


def log_length(testbed: Testbed) -> int:
    return len(testbed.kbs_log.read_text().splitlines())


def run_with_changed_agent(testbed: Testbed, scratch: Path, image: str) -> subprocess.CompletedProcess[str]:
    """One byte of one file in a copy of the agent bundle is changed; everything else stays."""
    bundles = scratch / "bundles"
    shutil.copytree(testbed_bundles(testbed), bundles, symlinks=True)
    victim = max((p for p in (bundles / "agent/rootfs").rglob("*.pyc")), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    victim.chmod(0o444)
    configuration = scratch / "changed.toml"
    configuration.write_text(testbed.configuration.read_text().replace(str(testbed_bundles(testbed)), str(bundles)))
    return testbed.cli("run", "--config", str(configuration), "--rm", "--quiet", image, check=False)


def run_unsigned(testbed: Testbed, source: str) -> subprocess.CompletedProcess[str]:
    testbed.cli("image", "push", source, testbed.reference("unsigned"), "--insecure")
    return testbed.cli("run", "--rm", "--quiet", testbed.reference("unsigned"), check=False)


if __name__ == "__main__":
    sys.exit(main())
