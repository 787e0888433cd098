#!/usr/bin/env bash
# Installs what the project needs on Debian 12: packages from apt (as root) and a venv from the lock. Safe to repeat.
set -euo pipefail
python=$1 venv=$2
packages=(
    python3-venv                # the venv, and the interpreter that goes into the bundles
    runc fuse3 erofs-utils      # containers, the FUSE device's rules, fsck.erofs as a judge
    containerd                  # what the shim and the snapshotter serve
    docker-registry skopeo umoci gocryptfs debootstrap busybox-static  # real peers for demo, tests and bench
    postgresql procps           # the KBS's shared database: a private server, started by the tests
    chromium fonts-dejavu-core  # looks at the owner's page, for its tests
    haproxy                     # a balancer before several instances of the KBS
    softhsm2                    # a PKCS#11 token for the KBS's tests
    containernetworking-plugins iproute2 iptables                      # --network pod
    attr libcap2-bin make ca-certificates
)
missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if ((${#missing[@]})); then
    if ((EUID != 0)); then
        echo "error missing-tool: these packages are not installed: ${missing[*]}. Run as root, or install them." >&2
        exit 4
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
