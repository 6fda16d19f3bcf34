#!/bin/bash
# Puts workerd (the reference), ws and partysocket (clients) under ~/.cache/roost-npm, from npm. Exits 0 without them, with a
# line that says so: the tests are skipped then.
set -euo pipefail
D=${ROOST_NPM:-$HOME/.cache/roost-npm}
[ -d "$D/node_modules/workerd" ] && [ -d "$D/node_modules/ws" ] && [ -d "$D/node_modules/partysocket" ] &&
  [ -d "$D/node_modules/@cloudflare/workers-shared" ] && exit 0
command -v npm >/dev/null || { echo "no npm: the tests beside workerd and with Node's clients will be skipped"; exit 0; }
mkdir -p "$D"
npm install --silent --no-fund --no-audit --prefix "$D" workerd@1.20261117.1 ws@8.23.0 partysocket@1.3.0 \
  @cloudflare/workers-shared@0.17.5 ||
  echo "npm cannot install workerd, ws, partysocket and workers-shared: the tests with them will be skipped"
