#!/usr/bin/env bash
# Builds the static binaries that the image is made of, into bin/, and prints their sizes and what `file` says.
# Installs what it needs and does not find: musl-gcc, file (Debian packages), the Rust target.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=x86_64-unknown-linux-musl

[ "$(uname -m)" = x86_64 ] || { echo "build.sh: builds for x86-64 on x86-64 only" >&2; exit 1; }

missing=()
command -v musl-gcc >/dev/null || missing+=(musl-tools)
command -v file >/dev/null || missing+=(file)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "build.sh: install these first: ${missing[*]}" >&2; exit 1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
if command -v rustup >/dev/null && ! (cd "$root" && rustup target list --installed | grep -qx "$target"); then
  (cd "$root" && rustup target add "$target")
fi

cd "$root"
export CC_x86_64_unknown_linux_musl=musl-gcc
# What is hot and what is cold (docs/design/0020-profile.md). A function that has changed since is compiled without it.
used="'-C', 'profile-use=$root/target/profile.profdata', '-C', 'llvm-args=-no-pgo-warn-mismatch'"
if rustc -vV | cmp --silent - node/native/profile.rustc; then
  mkdir -p target
  gzip --decompress --stdout node/native/profile.profdata.gz >target/profile.new
  # A file that is new to cargo has everything compiled again.
  cmp --silent target/profile.new target/profile.profdata || cp target/profile.new target/profile.profdata
  rm target/profile.new
else
  echo "build.sh: the profile is of another compiler than this one; built without it, and slower by a sixth" >&2
  used=
fi
profile="target.$target.rustflags=[$used]"
# Apart, so that what the faults switch on in the store does not get into the node.
cargo build --release --locked --target "$target" --config "$profile" -p node --features jemalloc
cargo build --release --locked --target "$target" --config "$profile" -p chaos --features jemalloc

folder=${CARGO_TARGET_DIR:-$root/target}/$target/release
mkdir -p "$here/bin"
for name in marram chaos; do
  install -m 0755 "$folder/$name" "$here/bin/$name"
  bytes=$(stat -c %s "$here/bin/$name")
  printf '%s: %s bytes (%s MB)\n' "$name" "$bytes" "$(awk "BEGIN { printf \"%.1f\", $bytes / 1000000 }")"
  file -b "$here/bin/$name"
done
