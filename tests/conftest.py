"""What all tests share: where the examples are, and a fresh app folder."""

import subprocess
import textwrap
from pathlib import Path

import pytest

import roost.names  # noqa: F401 - tests import `workers` as worker code does

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def examples() -> Path:
    return ROOT / "examples"


def write_app(folder: Path, source: str, *classes: str, config: str = "", settings: str = "") -> Path:
    """An app in `folder`: its Python source, and which classes are bound (binding = class name in capitals)."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(textwrap.dedent(source))
    lines = ['name = "test-app"', 'main = "worker.py"', 'compatibility_date = "2026-11-01"', config]
    for name in classes:
        lines += ["[[durable_objects.bindings]]", f'name = "{name.upper()}"', f'class_name = "{name}"']
    (folder / "wrangler.toml").write_text("\n".join(lines))
    if settings:
        (folder / "roost.toml").write_text(textwrap.dedent(settings))
    return folder


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def make_app(tmp_path):
    """`write_app` into a folder of this test's own."""
    return lambda *args, **options: write_app(tmp_path / "app", *args, **options)
