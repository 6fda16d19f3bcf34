"""Roost and its peers through the same work, in one run: `make bench`, or

    python benchmarks/run.py [--only P3,P4…] [--peers NAME,…] [--rounds N] [--seconds S] [--json FILE] [--svg FILE]

Medians of interleaved rounds are shown, and the ratio to workerd. Absolute figures are noise on a shared machine; the
ratios count. Roost serves a hibernating Durable Object with its default settings; workerd the same in JavaScript; the
others, which have no objects, a plain handler. What is measured is in `works.py`, how servers start in `servers.py`.
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
from works import WORKS, Options


def main():
    parser = argparse.ArgumentParser(description="Roost and its peers, side by side.")
    parser.add_argument("--only", default=",".join(WORKS), help="works, such as P1,P3")
    parser.add_argument("--peers", default=",".join(SERVERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of measurement, each server and round")
    parser.add_argument("--json", default=str(CACHE / "bench.json"))
    parser.add_argument("--svg", default=str(CACHE / "bench.svg"))
    options = parser.parse_args()
    wanted, peers = options.only.split(","), options.peers.split(",")
    for given, known, what in ((wanted, WORKS, "work"), (peers, SERVERS, "server")):
        if unknown := set(given) - set(known):
            parser.error(f"no such {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    CACHE.mkdir(exist_ok=True)
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # P8 and P12 are measured from here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped then, too
    figures = []
    began = time.monotonic()
    for work in dict.fromkeys(WORKS[name] for name in wanted):  # P4, P5 and P10 are one
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
    report = {
        "machine": f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "rounds": options.rounds,
        "figures": [as_dict(figure) for figure in figures],
    }
    Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    Path(options.svg).write_text(chart.svg(report["figures"]))
    print(f"\nwritten: {options.json}, {options.svg}")


def medians(figure):
    return {name: statistics.median(samples) for name, samples in figure.samples.items() if samples}


def verdicts(figure):
    """Each bar in words, and whether it is reached; None if what it is measured against is missing."""
    found = []
    middle = medians(figure)
    for bar in figure.bars:
        if bar.server not in middle or (bar.against and bar.against not in middle):
            continue
        sign = "≥" if figure.more_is_better else "≤"
        value = middle[bar.server] / middle[bar.against] if bar.against else middle[bar.server]
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
    lines = ["| # | work | server | median | spread | ÷ workerd | bar |", "|---|---|---|---|---|---|---|"]
    for figure in figures:
        middle = medians(figure)
        bars = {}
        for server, goal, value, reached in verdicts(figure):
            bars.setdefault(server, []).append(f"{goal}: {number(value)} {'✓' if reached else '✗ missed'}")
        for name, median in middle.items():
            samples = figure.samples[name]
            ratio = f"{median / middle['workerd']:.2f}" if middle.get("workerd") else ""
            spread = f"{number(min(samples))}-{number(max(samples))}" if len(samples) > 1 else ""
            cells = [figure.key, f"{figure.title}, {figure.unit}", name, number(median), spread, ratio]
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
