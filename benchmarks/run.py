"""Roost and its peers through the same work, in one run: `make bench`, `make bench-sizes`, or

    python benchmarks/run.py [--sizes] [--only P3,P4…] [--peers NAME,…] [--rounds N] [--seconds S] [--json FILE]

Medians of interleaved rounds are shown, and their ratios to workerd, to the best peer, and to the floor in C. Absolute
figures are noise on a shared machine; the ratios count. Roost serves a hibernating Durable Object with its default
settings; workerd the same in JavaScript; the others, which have no objects, a plain handler. What is measured is in
`works.py` and `sizes.py`, how servers start in `servers.py`.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import chart
from servers import CACHE, LOAD_CORE, SERVERS
from sizes import PYTHON_PEERS, SIZES
from works import WORKS, Options

OURS = ("roost split", "roost inline")
NO_PEERS = (*OURS, "workerd", "floor")


def main():
    parser = argparse.ArgumentParser(description="Roost and its peers, side by side.")
    parser.add_argument("--sizes", action="store_true", help="the works of `make bench-sizes`")
    parser.add_argument("--only", help="works, such as P1,P3")
    parser.add_argument("--peers", default=",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of measurement, each server and round")
    parser.add_argument("--json")
    parser.add_argument("--svg")
    options = parser.parse_args()
    works, name = (SIZES, "bench-sizes") if options.sizes else (WORKS, "bench")
    wanted, peers = options.only.split(",") if options.only else list(works), options.peers.split(",")
    json_file = Path(options.json or CACHE / f"{name}.json")
    svg_file = Path(options.svg or CACHE / f"{name}.svg")
    for given, known, what in ((wanted, works, "work"), (peers, SERVERS, "server")):
        if unknown := set(given) - set(known):
            parser.error(f"no such {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    CACHE.mkdir(exist_ok=True)
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # P8 and P12 are measured from here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped then, too
    figures = []
    began = time.monotonic()
    for work in dict.fromkeys(works[name] for name in wanted):  # P4, P5 and P10 are one
        started = time.monotonic()
        try:
            for figure in work(Options(options.rounds, options.seconds, peers)):
                figures.append(figure)
                show(figure)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"{work.__name__.upper()}: failed: {error}", flush=True)
        print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s\n")
    print(table(figures))
    machine = f"{platform.system()} {platform.release()}, {processor()}, Python {platform.python_version()}"
    print(f"\n{machine}")
    report = {
        "machine": machine,
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "rounds": options.rounds,
        "figures": [as_dict(figure) for figure in figures],
    }
    json_file.write_text(json.dumps(report, indent=1) + "\n")
    svg_file.write_text(chart.svg(report["figures"]))
    print(f"\nwritten: {json_file}, {svg_file}")


def processor():
    """The processor's model, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def medians(figure):
    return {name: statistics.median(samples) for name, samples in figure.samples.items() if samples}


def best_of(figure, names):
    """The best median of these, None if none of them has one."""
    found = [value for name, value in medians(figure).items() if name in names]
    return (max if figure.more_is_better else min)(found) if found else None


def other_of(figure, against):
    """What a bar is measured against: a server, "best peer", or "best Python peer"."""
    if against == "best peer":
        return best_of(figure, [name for name in SERVERS if name not in NO_PEERS])
    if against == "best Python peer":
        return best_of(figure, PYTHON_PEERS)
    return medians(figure).get(against)


def verdicts(figure):
    """Each bar in words, and whether it is reached; left out if what it is measured against is missing."""
    found = []
    middle = medians(figure)
    for bar in figure.bars:
        other = other_of(figure, bar.against) if bar.against else 1.0
        if bar.server not in middle or not other:
            continue
        sign = "≥" if figure.more_is_better else "≤"
        value = middle[bar.server] / other
        reached = value >= bar.factor if figure.more_is_better else value <= bar.factor
        goal = f"{sign} {bar.factor:g}×{bar.against}" if bar.against else f"{sign} {bar.factor:g}"
        found.append((bar.server, goal, value, reached))
    return found


def show(figure):
    print(f"{figure.key}: {figure.title}, {figure.unit}", flush=True)
    for name, value in medians(figure).items():
        print(f"  {name}: {number(value)}", flush=True)
    for server, goal, value, reached in verdicts(figure):
        print(f"  {'reached' if reached else 'MISSED'}: {server} {goal}: {number(value)}", flush=True)


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def table(figures):
    lines = ["| # | work | server | median | spread | ÷ floor | ÷ best peer | ÷ workerd | bar |", "|" + "---|" * 9]
    for figure in figures:
        middle = medians(figure)
        bars = {}
        for server, goal, value, reached in verdicts(figure):
            bars.setdefault(server, []).append(f"{goal}: {number(value)} {'✓' if reached else '✗ missed'}")
        for name, median in middle.items():
            samples = figure.samples[name]
            others = [other_of(figure, each) for each in ("floor", "best peer", "workerd")]
            ratios = [f"{median / other:.2f}" if other else "" for other in others]
            spread = f"{number(min(samples))}-{number(max(samples))}" if len(samples) > 1 else ""
            cells = [figure.key, f"{figure.title}, {figure.unit}", name, number(median), spread, *ratios]
            lines.append(f"| {' | '.join([*cells, '; '.join(bars.get(name, []))])} |")
    return "\n".join(lines)


def as_dict(figure):
    return {
        "key": figure.key,
        "title": figure.title,
        "unit": figure.unit,
        "more_is_better": figure.more_is_better,
        "medians": medians(figure),
        "samples": figure.samples,
        "bars": [
            {"server": server, "goal": goal, "value": value, "reached": reached}
            for server, goal, value, reached in verdicts(figure)
        ],
        "notes": figure.notes,
    }


if __name__ == "__main__":
    main()
