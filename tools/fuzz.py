"""Fuzzes every wire parser for a bounded time: `tools/fuzz.py [--seconds N] [TARGET ...]`.

A target module in tests/fuzz/targets holds SEEDS and `target(data)`, which swallows `PeerError` only; anything else
that escapes is a finding, kept under tests/fuzz/findings. Inputs are mutations of the seeds; the random seed is
printed, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ROOT / "tests/fuzz/targets"
FINDINGS = ROOT / "tests/fuzz/findings"
INTERESTING = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0" * 8, b"../", b"{", b'"', b"9" * 30, b"\x80" * 10]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mutate(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    """One to eight small changes: flips, cuts, repeats, splices with another seed, interesting values."""
    buffer = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(buffer))
        match rng.randrange(6):
            case 0 if buffer:
                buffer[at % len(buffer)] ^= 1 << rng.randrange(8)
            case 1:
                del buffer[at : at + rng.randint(1, 16)]
            case 2:
                buffer[at:at] = rng.randbytes(rng.randint(1, 16))
            case 3:
                buffer[at:at] = rng.choice(INTERESTING)
            case 4:
                other = rng.choice(corpus)
                buffer[at:] = other[rng.randint(0, len(other)) :]
            case _:
                buffer[at:at] = buffer[at : at + rng.randint(1, 64)] * rng.randint(1, 4)
    return bytes(buffer)


def fuzz(name: str, target: Callable[[bytes], None], seeds: list[bytes], seconds: float, seed: int) -> tuple[int, int]:
    """Returns inputs tried and findings."""
    rng = random.Random(seed)
    corpus = list(seeds) or [b""]
    tried = findings = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = corpus[tried] if tried < len(corpus) else mutate(rng, rng.choice(corpus), corpus)
        tried += 1
        try:
            target(data)
        except Exception:
            findings += 1
            FINDINGS.mkdir(parents=True, exist_ok=True)
            kept = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            kept.write_bytes(data)
            print(f"finding in {name}, kept as {kept.relative_to(ROOT)}:", file=sys.stderr)
            traceback.print_exc()
            if findings >= 5:
                break
    return tried, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    paths = sorted(p for p in TARGETS.glob("*.py") if not arguments.targets or p.stem in arguments.targets)
    if not paths:
        print("error usage: no such fuzz target. See tests/fuzz/targets.", file=sys.stderr)
        return 2
    total = 0
    print(f"seed {arguments.seed}")
    for path in paths:
        module = load(path)
        tried, findings = fuzz(path.stem, module.target, module.SEEDS, arguments.seconds, arguments.seed)
        total += findings
        print(f"{path.stem:<24} {tried:>9} inputs  {findings} findings")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
