"""AutobahnTestSuite's fuzzing client against a hibernatable echo in split mode.

In every run: the 301 cases of chapters 1-7, 9 and 10. `make conformance` adds the 216 of compression (chapters 12 and 13).
NON-STRICT is allowed only where it says how soon a valid earlier frame is answered, or where in a frame bad text is found.
"""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from roost.testing import running

WSTEST = Path(os.environ.get("AUTOBAHN_HOME", Path.home() / ".cache/autobahn")) / "py27/bin/wstest"
HERE = Path(__file__).parent
GROUPS = {"protocol": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"], "limits": ["9.*"]}
COMPRESSION = {
    f"{chapter}.{part}": [f"{chapter}.{part}.*"] for chapter, parts in ((12, 5), (13, 7)) for part in range(1, parts + 1)
}
CASES = {"protocol": 247, "limits": 54}
NON_STRICT = ("3.", "4.", "5.15", "6.4.")

pytestmark = [
    pytest.mark.skipif(
        not WSTEST.exists() and not os.environ.get("CI"), reason="no Autobahn: tests/conformance/install_autobahn.sh"
    ),
    pytest.mark.timeout(900),
]


def run_cases(cases, folder):
    """What Autobahn says of each case: `{case: {"behavior": …, "behaviorClose": …}}`."""
    with running(HERE / "echo") as node:
        spec = {
            "outdir": str(folder),
            "servers": [{"agent": "roost", "url": f"ws://127.0.0.1:{node.port}", "options": {"version": 18}}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        path = folder / "spec.json"
        path.write_text(json.dumps(spec))
        done = subprocess.run(
            [WSTEST, "-m", "fuzzingclient", "-s", path], cwd=folder, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "index.json").read_text())["roost"]


def judge(results, count):
    wrong = {
        case: (result["behavior"], result["behaviorClose"])
        for case, result in results.items()
        if (
            result["behavior"] not in ("OK", "INFORMATIONAL")
            and not (result["behavior"] == "NON-STRICT" and case.startswith(NON_STRICT))
        )
        or result["behaviorClose"] not in ("OK", "INFORMATIONAL")
    }
    print(f"{len(results)} cases: {dict(Counter(result['behavior'] for result in results.values()))}")
    assert not wrong
    assert len(results) == count


@pytest.mark.parametrize("group", GROUPS)
def test_protocol(tmp_path, group):
    judge(run_cases(GROUPS[group], tmp_path), CASES[group])


@pytest.mark.skipif(not os.environ.get("ROOST_CONFORMANCE"), reason="make conformance")
@pytest.mark.parametrize("group", COMPRESSION)
def test_compression(tmp_path, group):
    judge(run_cases(COMPRESSION[group], tmp_path), 18)
