"""Which data folder a command means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from roost.errors import ConfigError


def data_of(parsed: Any) -> Path:
    """`--data`, or `.roost/data` in the app's folder. Raises ConfigError if there is none."""
    data = Path(parsed.data or os.path.join(parsed.dir, ".roost", "data")).resolve()
    if not data.is_dir():
        raise ConfigError(f"{data} is not a data folder; name it with --data.")
    return data
