#!/usr/bin/env bash
# Unpacks containerd of later Debian releases below a directory, for the suite to run against: DIR/SUITE/usr/bin/containerd.
# Nothing is installed, and apt's own sources and lists stay as they are. Mirror and key ring are those of this machine.
# Safe to repeat: what is there stays; remove DIR to get newer ones.
#
#   tools/other_containerds.sh build/containerds [SUITE...]     (default: trixie with 1.7, sid with 2.x)
set -euo pipefail
directory=$(realpath -m "$1")
shift
suites=("$@")
((${#suites[@]})) || suites=(trixie sid)

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
if [ -z "$mirror" ]; then
    echo "error environment: apt knows no mirror of Debian here. Run apt-get update, or name one in /etc/apt." >&2
    exit 4
fi
apt=$directory/apt
for suite in "${suites[@]}"; do
    there=$directory/$suite
    if [ ! -x "$there/usr/bin/containerd" ]; then
        rm -rf "$apt" "$there"
        mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/unpacked"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
        private=(
            -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
            -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" -o Dir::State::status=/dev/null
            -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
        )
        apt-get "${private[@]}" update -q >&2
        (cd "$apt" && apt-get "${private[@]}" download -q containerd >&2)
        dpkg-deb --extract "$apt"/containerd_*.deb "$apt/unpacked"
        mv "$apt/unpacked" "$there"
        rm -rf "$apt"
    fi
    echo "$there/usr/bin/containerd"
done
