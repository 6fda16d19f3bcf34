"""The `roost` command. Exit codes: 0 drained, 1 failure, 2 usage or configuration.

Only argparse is imported before the command line is understood, so that `roost --help` is quick.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from roost.cli.parser import parser
from roost.errors import ConfigError, RoostError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parsed = parser().parse_args(arguments)
    try:
        if parsed.command == "objects":
            from roost.cli import objects

            return objects.run(parsed)
        if parsed.command in ("deploy", "rollback", "versions", "upgrade"):
            from roost.cli import deploy

            return deploy.run(parsed)
        if parsed.command in ("storage", "check"):
            from roost.cli import storage

            return storage.run(parsed)
        from roost.cli import serve

        return serve.run(parsed)
    except ConfigError as error:
        return _complain(error, 2, parsed)
    except RoostError as error:
        return _complain(error, 1, parsed)
    except OSError as error:
        return _complain(error, 1, parsed)


def _complain(error: Exception, code: int, parsed: Any) -> int:
    print(f"roost: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr)
    if getattr(parsed, "debug", False):
        raise error
    return code
