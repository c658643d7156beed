#!/bin/sh
# Install what tests/clients drives: sh scripts/install_clients.sh DIRECTORY
#
# Python's libraries in DIRECTORY/venv, Node's in DIRECTORY/node_modules; curl, node, npm and chromium are the
# distribution's. Versions are those of tests/clients/requirements.txt and package-lock.json. An installation that is
# complete and of these versions is left alone.
set -eu
cd "$(dirname "$0")/../tests/clients"
directory="$1"
wanted="$directory $(python3 --version) $(node --version) $(cat requirements.txt package-lock.json | sha256sum)"
if [ "$(cat "$directory/complete" 2> /dev/null)" = "$wanted" ]; then
    echo "the client programs are already installed: $directory"
    exit
fi
rm -rf "$directory"
mkdir -p "$directory"
cp package.json package-lock.json "$directory"
(cd "$directory" && npm ci --ignore-scripts --no-audit --no-fund --silent) &
node_modules=$!
python3 -m venv "$directory/venv"
# What is imported compiles itself: a tenth of what is installed.
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile -r requirements.txt
wait "$node_modules"
echo "$wanted" > "$directory/complete"
