"""`make fuzz`: coverage-guided fuzzing (atheris, libFuzzer) of everything that reads bytes from outside.

    python tests/fuzz/run.py [TARGET…]        MINUTES=10 for each

Each target runs in a process of its own, which ends with an error if an input crashes it (an exception that is not the
documented one), hangs it (10 s) or makes it grow (1 GiB). Inputs that did are left in tests/fuzz/found/. The same targets
run under hypothesis in `make test` (tests/unit/test_fuzz_targets.py), without atheris.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS

FOUND = Path(__file__).parent / "found"


def main():
    names = sys.argv[1:] or list(TARGETS)
    seconds = int(float(os.environ.get("MINUTES", "10")) * 60)
    FOUND.mkdir(exist_ok=True)
    failed = []
    for name in names:
        corpus = FOUND / f"corpus-{name}"
        corpus.mkdir(exist_ok=True)
        command = [
            sys.executable, __file__, "--one", name, str(corpus), f"-max_total_time={seconds}", "-timeout=10",
            "-rss_limit_mb=1024", "-max_len=65536", f"-artifact_prefix={FOUND}/{name}-", "-print_final_stats=1",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        stats = dict(_stats(done.stderr))
        runs, peak = stats.get("number_of_executed_units", "?"), stats.get("peak_rss_mb", "?")
        print(
            f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}, {runs} inputs in {seconds} s, peak {peak} MiB",
            flush=True,
        )
        if done.returncode:
            failed.append(name)
            print(done.stderr[-3000:])
    return 1 if failed else 0


def _stats(text):
    for line in text.splitlines():
        if line.startswith("stat::"):
            key, _, value = line.removeprefix("stat::").partition(":")
            yield key.strip(), value.strip()


def one(name):
    import atheris

    target = TARGETS[name]
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *sys.argv[3:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        sys.exit(main())
