"""What all tests share: where the examples are, and a fresh app folder."""

import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def examples() -> Path:
    return ROOT / "examples"


@pytest.fixture
def make_app(tmp_path):
    """Write an app: its Python source, and which classes are bound (binding = class name in capitals)."""

    def write(source: str, *classes: str, config: str = "", settings: str = "") -> Path:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        (folder / "worker.py").write_text(textwrap.dedent(source))
        lines = ['name = "test-app"', 'main = "worker.py"', 'compatibility_date = "2026-11-01"', config]
        for name in classes:
            lines += ["[[durable_objects.bindings]]", f'name = "{name.upper()}"', f'class_name = "{name}"']
        (folder / "wrangler.toml").write_text("\n".join(lines))
        if settings:
            (folder / "roost.toml").write_text(textwrap.dedent(settings))
        return folder

    return write
