#!/usr/bin/env bash
# Builds the API server, the kubelet and the Helm of the tests once (tests/apiserver/README.md, tests/helm/README.md). Running it again does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup-kube: %s\n' "$*"; }
here=$PWD/.cache/kube

if ! command -v go >/dev/null 2>&1; then
  say "there is no go: install Go $(sed -n 's/^go //p' tests/apiserver/go.mod) or newer, then run make setup-kube again"
  exit 1
fi

# make NAME FOLDER PACKAGE WHAT: builds a program of FOLDER as NAME, unless that was made from the same sources by the same Go.
make() {
  local name=$1 folder=$2 package=$3 what=$4 want started told build
  want=$( (go version; cat "$folder/go.mod" "$folder/go.sum" "$folder/$package"/*.go) | sha256sum | cut -d' ' -f1)
  if [ -x "$here/$name" ] && [ "$(cat "$here/$name.made-from" 2>/dev/null)" = "$want" ]; then
    return
  fi
  mkdir -p "$here"
  say "building $what from source: some minutes the first time, then never again"
  started=$SECONDS
  say "fetching modules"
  (cd "$folder" && go mod download)
  say "compiling"
  (cd "$folder" && CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false' nice go build -ldflags '-s -w' -o "$here/$name.new" "./$package" 2>&1) &
  build=$!
  # A line every half minute, so that nobody thinks it hangs.
  told=$SECONDS
  while kill -0 "$build" 2>/dev/null; do
    sleep 1
    if (( SECONDS - told >= 30 )); then
      told=$SECONDS
      say "still compiling ($((SECONDS - started)) s)"
    fi
  done
  wait "$build"
  mv "$here/$name.new" "$here/$name"
  echo "$want" > "$here/$name.made-from"
  say "done in $((SECONDS - started)) s: $here/$name ($(du -h "$here/$name" | cut -f1))"
}

pinned() { sed -n "s/.*$2 v/v/p" "tests/$1/go.mod" | head -1; }
make kube-tools tests/apiserver . "kube-apiserver, kubectl $(pinned apiserver k8s.io\\/kubernetes) and etcd"
make kubelet tests/apiserver kubelet "the node's end of port-forward, exec and logs"
make helm tests/helm . "Helm $(pinned helm helm.sh\\/helm\\/v4)"
