#!/usr/bin/env bash
# Installs what a build needs on Debian and Ubuntu, or names it. Does nothing when all of it is there.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need cmake cmake
need clang clang
need cc gcc
need c++ g++
need make make
need pkg-config pkg-config
# bindgen loads libclang at build time.
ldconfig -p 2>/dev/null | grep -q libclang || ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1 || missing+=(libclang-dev)
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
# The translation plugin's tests translate with it; the plugin itself takes whatever pairs are installed.
need apertium apertium
[ -e /usr/share/apertium/modes/eng-spa.mode ] || missing+=(apertium-eng-spa)

if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust with rustup (the toolchain itself is pinned in rust-toolchain.toml)" >&2
    exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

echo "==> missing: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "this is no Debian or Ubuntu: install these packages, or what they are called here, and run it again" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then sudo=(); elif command -v sudo >/dev/null; then sudo=(sudo); else
    echo "not root and no sudo: have somebody run: apt-get install ${missing[*]}" >&2
    exit 1
fi
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
