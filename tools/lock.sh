#!/usr/bin/env bash
# Writes locks/dev.txt and the enclaves' own locks: name==version with hashes, no URLs.
set -euo pipefail
venv=$1
"$venv/bin/python" -m pip install --quiet uv
compile() { "$venv/bin/uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate "$@"; }
compile locks/dev.in -o locks/dev.txt
compile payload/measured/agent/requirements.in -o payload/measured/agent/requirements.txt
compile payload/measured/app/requirements.in -o payload/measured/app/requirements.txt
