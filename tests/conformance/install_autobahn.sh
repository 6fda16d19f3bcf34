#!/bin/bash
# Puts wstest (AutobahnTestSuite 25.10.1, which is Python 2.7 source) under ~/.cache/autobahn. Needs a CPython 2.7 (pyenv's, or
# PY2=...) and a C compiler; only PyPI is asked. Exits 0 without it, with a line that says so: the tests are skipped then.
set -euo pipefail
D=${AUTOBAHN_HOME:-$HOME/.cache/autobahn}
[ -x "$D/py27/bin/wstest" ] && exec true
PY2=${PY2:-$(ls -d "$HOME"/.pyenv/versions/2.7*/bin/python2.7 2>/dev/null | tail -1 || true)}
[ -n "$PY2" ] || { echo "no Python 2.7: the Autobahn tests will be skipped (pyenv install 2.7.18)"; exit 0; }
mkdir -p "$D"
cd "$D"
[ -x venv/bin/virtualenv ] || { "${PYTHON:-python3}" -m venv venv; venv/bin/pip -q install 'virtualenv==20.21.1'; } # the last for 2.7
[ -x py27/bin/python ] || venv/bin/virtualenv -q -p "$PY2" py27
py27/bin/pip -q install 'setuptools==44.0.0' 'setuptools_scm<6' 2>/dev/null
# The suite's own install does not pull its dependencies (the sdist lacks its requirements file): they are pinned here.
py27/bin/pip -q install six==1.16.0 txaio==2.1.0 incremental==16.10.1 cryptography==3.3.2 pyOpenSSL==19.1.0 \
  Twisted==19.10.0 zope.interface==4.6.0 jinja2==2.11.3 markupsafe==1.1.1 Werkzeug==1.0.1 klein==17.10.0 \
  service_identity==18.1.0 unittest2==1.1.0 wsaccel==0.6.6 ujson==2.0.3 autobahn==0.10.9 2>/dev/null
py27/bin/pip -q install --no-deps autobahntestsuite==25.10.1 2>/dev/null
py27/bin/wstest -a >/dev/null
