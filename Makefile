# Few verbs; `make help` lists them. Everything lives in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | sort

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(STAMP)  ## make .venv with everything that is needed

tracer:
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  apt-get install -y -qq strace >/dev/null; } || echo "no strace: the tests that count system calls will be skipped"

proxies:
	@command -v nginx >/dev/null && command -v caddy >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light caddy >/dev/null; } || \
	  echo "no nginx or no caddy: the tests behind them will be skipped"

browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
	  echo "no chromium: the browser tests will be skipped (install chromium and chromium-driver)"

demo: $(STAMP)  ## serve the example game room on http://127.0.0.1:8787
	$(BIN)/roost serve examples/game

lint: $(STAMP)  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports

autobahn:
	@PYTHON=$(PYTHON) tests/conformance/install_autobahn.sh || echo "Autobahn cannot be installed: its tests will be skipped"

npm:
	@tests/conformance/install_npm.sh

test: $(STAMP) browser proxies tracer autobahn npm lint  ## the whole suite
	$(BIN)/python -m pytest -q

quick: $(STAMP)  ## the unit and contract tests alone, on two processors in under 20 seconds
	$(BIN)/python -m pytest -q -n auto --dist loadfile tests/unit tests/contract

torture: $(STAMP)  ## random faults under load, judged by their invariants (SEED=1 MINUTES=5); a summary line at the end
	ROOST_SEED=$(or $(SEED),1) ROOST_MINUTES=$(or $(MINUTES),5) $(BIN)/python -m pytest -q -s -o faulthandler_timeout=0 tests/faults/test_rows.py -k torture

acceptance: $(STAMP)  ## the long runs: 100 kills, 200 torn logs, 10,000 alarms, 20 deploys, 100,000 names, 60 s of crashes…
	ROOST_SEED=$(or $(SEED),1) ROOST_KILLS=100 ROOST_SNAPSHOTS=200 ROOST_ALARMS=10000 ROOST_DEPLOYS=20 ROOST_DEPLOY_SOCKETS=1000 \
	ROOST_CRASH_S=60 ROOST_CRASH_SOCKETS=1000 ROOST_UPGRADE_SOCKETS=10000 ROOST_UPGRADE_BUSY=200 ROOST_NAMES=100000 \
	ROOST_READERS=1000 ROOST_STORM=8000 $(BIN)/python -m pytest -q -s -o timeout=1800 -o faulthandler_timeout=3600 tests/faults tests/integration/test_alarms_and_calls.py

conformance: $(STAMP) autobahn  ## all 517 cases of Autobahn, which takes about 15 minutes
	ROOST_CONFORMANCE=1 $(BIN)/python -m pytest -q -s -o faulthandler_timeout=1800 tests/conformance/test_autobahn.py

fuzz: $(STAMP)  ## codec, HTTP head, envelope, values, configuration: MINUTES (10) each without a crash, hang or growth
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check atheris==3.0.0
	MINUTES=$(or $(MINUTES),10) $(BIN)/python tests/fuzz/run.py

bench: $(STAMP)  ## P1-P13: Roost and its peers, side by side, in under 10 minutes
	$(BIN)/python benchmarks/run.py

bench-sizes: $(STAMP)  ## sizes from 1 KiB to 1 MiB, compression, TLS, wakes that write: in under 12 minutes
	$(BIN)/python benchmarks/run.py --sizes

compare: $(STAMP)  ## what this tree did to the speed of a commit: BASE=<commit> ROWS=P1,P3 (PAIRS=20 MODES=split,inline)
	@test -n "$(BASE)" || { echo "make compare needs BASE=<commit>"; exit 2; }
	$(BIN)/python benchmarks/compare.py --base $(BASE) --rows $(or $(ROWS),P1,P3) --pairs $(or $(PAIRS),20) \
	--modes $(or $(MODES),split,inline)

measure-calls: $(STAMP)  ## what a message, a wake, an upgrade cost in calls (BASE=<commit>: beside that commit)
	@$(BIN)/python tools/measure_calls.py $(if $(BASE),--base $(BASE))

measure-code:  ## sizes, circles of imports and access to others' private parts of the code base (ARGS=--json)
	@$(PYTHON) tools/measure_code.py $(ARGS)

mutants: $(STAMP)  ## which small changes no unit test notices (MODULE=roost.link.unix COUNT=40 SEED=1; without: all floors)
	$(BIN)/python tools/mutants.py $(MODULE) --count $(or $(COUNT),40) --seed $(or $(SEED),1)

coverage: $(STAMP)  ## which branches the unit and contract tests run
	$(BIN)/coverage run --branch --source=src/roost --data-file=.coverage -m pytest -q tests/unit tests/contract
	$(BIN)/coverage report --data-file=.coverage --sort=miss --fail-under=75
	@$(BIN)/python tools/coverage_check.py

soak: $(STAMP)  ## a year in half an hour: load, alarms, births, kills, freezes, deploys (MINUTES=30 SEED=1)
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1)

bench-storage: $(STAMP)  ## durable counters, reads and lists, beside workerd
	$(BIN)/python benchmarks/storage.py

growth: $(STAMP)  ## how the cost of a message grows with sockets, objects, sizes, hosts
	$(BIN)/python benchmarks/growth.py

clean:  ## remove what the other verbs made
	rm -rf .venv build .mypy_cache .ruff_cache .hypothesis

docs: $(STAMP)  ## the pages that are made from the source
	$(BIN)/python tools/close_codes.py

.PHONY: help setup npm autobahn conformance fuzz browser proxies tracer demo lint test torture acceptance bench bench-storage compare soak growth clean measure-code measure-calls mutants coverage docs
