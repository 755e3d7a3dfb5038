#!/usr/bin/env bash
# Writes profile.profdata.gz: how often each part of the program runs, so that the compiler of the static release knows what is
# hot and what is cold (docs/design/0020-profile.md).
#
#     node/native/profile.sh
#
# Builds the static release with counters in it, apart from every other build; lets it idle, serve and be asked through all that
# `benches peers` measures of Marram, and through tests of the real binary; adds up what the processes counted. Write it again
# before a release, and when CI says that too little of the code is known to be hot: names in the profile change with Cargo.lock.
#
# Needs what chaos/compose/build.sh needs, rustup's component llvm-tools (installed if rustup is there), pgrep, setpriv and
# openssl.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=x86_64-unknown-linux-musl
work=$root/target/profile
counts=$work/counts

for program in musl-gcc pgrep setpriv openssl; do
  command -v "$program" >/dev/null || { echo "profile.sh: there is no $program" >&2; exit 1; }
done
cd "$root"
if command -v rustup >/dev/null; then
  rustup component add llvm-tools
fi
profdata=$(find "$(rustc --print sysroot)" -name llvm-profdata -type f | head -n 1)
[ -n "$profdata" ] || { echo "profile.sh: there is no llvm-profdata in $(rustc --print sysroot)" >&2; exit 1; }

rm -rf "$counts"
mkdir -p "$counts"
CC_x86_64_unknown_linux_musl=musl-gcc CARGO_TARGET_DIR=$work cargo build --release --locked --target "$target" -p node \
  --features jemalloc --config "target.$target.rustflags=['-C', 'profile-generate=$counts']"

# Who is killed writes nothing down. So the agent is the child of what the benchmarks and tests kill: its standard input then ends,
# at which it stops in order.
agent=$work/agent
cat >"$agent" <<END
#!/bin/sh
exec 3<&0
setpriv --pdeathsig TERM "$work/$target/release/marram" "\$@" <&3 &
child=\$!
trap 'kill -TERM \$child' TERM INT
wait \$child
code=\$?
while kill -0 \$child 2>/dev/null; do
  wait \$child
  code=\$?
done
exit \$code
END
chmod +x "$agent"

cargo test --workspace --no-run
cargo run -p benches -- idle --seconds 10 --binary "$agent"
cargo run -p benches -- peers --only marram --seconds 2 --rounds 1 --binary "$agent"
# Tests that kill an agent and start it again at once fail here, where it ends in its own time. That is no matter: it ran.
MARRAM_TEST_BINARY=$agent timeout 600 cargo test --workspace --test it -- \
  routes shares udp streams http2 tcp:: locality limits policy protocols admin joining dns 2>&1 | tee "$work/tests.txt" || true
passed=$(grep -c '^test .* ok$' "$work/tests.txt" || true)
[ "$passed" -ge 60 ] || { echo "profile.sh: only $passed tests passed" >&2; exit 1; }
# The last of them end.
for _ in $(seq 60); do
  pgrep -f "$work/$target/release/marram agent" >/dev/null || break
  sleep 1
done

"$profdata" merge --failure-mode=all --output "$work/profile.profdata" "$counts"/*.profraw
"$profdata" show "$work/profile.profdata"
gzip --best --no-name --stdout "$work/profile.profdata" >"$here/profile.profdata.gz"
rustc -vV >"$here/profile.rustc"
ls -l "$here/profile.profdata.gz"
