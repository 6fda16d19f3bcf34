"""`roost objects`: what is awake, and why; quarantine and eviction."""

from __future__ import annotations

import os
from typing import Any

from roost.errors import ConfigError


def run(parsed: Any) -> int:
    import json

    from roost.node.control import ask

    data = parsed.data or os.path.join(parsed.dir, ".roost", "data")
    if parsed.verb == "release":
        answer = ask(os.path.abspath(data), {"command": "release", "object": parsed.object})
        if "error" in answer:
            raise ConfigError(str(answer["error"]))
        print(f"released: {answer['released']}")
        return 0
    if parsed.verb == "evict":
        answer = ask(os.path.abspath(data), {"command": "evict", "object": parsed.object, "cut": parsed.cut})
        if "error" in answer:
            raise ConfigError(str(answer["error"]))
        print(f"evicted: {answer['evicted']}")
        return 0
    status = ask(os.path.abspath(data), {"command": "status"})
    if "error" in status:
        raise ConfigError(str(status["error"]))
    if parsed.json:
        print(json.dumps(status, indent=2))
        return 0
    awake = [entry for host in status["hosts"] if host for entry in host["awake"]]
    sockets = sum(gateway["counters"]["hibernatable"] for gateway in status["gateways"] if gateway)
    print(f"objects awake: {len(awake)}; hibernatable sockets: {sockets}")
    for name, silent_s in status.get("mute", {}).items():
        print(f"  {name} has not answered for {silent_s:g} s: what it has is not listed")
    for entry in status.get("quarantined", []):
        print(f"  {entry['object']}  {entry['id']}  in quarantine: it has brought its host down twice")
    for entry in awake:
        why = "awake for: " + ", ".join(entry["pins"]) if entry["pins"] else "idle: sleeps soon, nothing pins it"
        print(f"  {entry['object']}  {entry['phase']}  sockets: {entry['sockets']}  {why}")
    return 0
