"""Makes a small ordinary OCI image (busybox that says hello) as an OCI layout: `tools/hello_image.py DIRECTORY`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from testbed import busybox_root, make_image


def main() -> int:
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        print("error usage: name a directory that is not there yet. It becomes the image's OCI layout.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        root = busybox_root(Path(scratch) / "root")
        command = ["--config.cmd", "/bin/echo", "--config.cmd", "hello from an app enclave"]
        print(make_image(Path(sys.argv[1]), "latest", root, *command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
