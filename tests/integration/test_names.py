"""Whose `workers` a program gets: Roost's in a host and where `roost.names` was imported, else whoever's is installed."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from conftest import ROOT, write_app
from roost.testing import running

WORKER = """
import sys
import workers
from asgi import entrypoint
from workers import Response, WorkerEntrypoint
from workers.workflows import NonRetryableError

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response.json([workers.__name__, sys.path])
"""


def pip(python, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "-q", *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "-w", folder, ROOT],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return str(next(folder.glob("roost-*.whl")))


@pytest.fixture(scope="module")
def sdk(tmp_path_factory):
    """Cloudflare's package, as their templates install it."""
    folder = tmp_path_factory.mktemp("sdk")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "-d", folder,
         "workers-runtime-sdk==1.9.5"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"workers-runtime-sdk cannot be had: {done.stderr}")
    return str(next(folder.glob("*.whl")))


@pytest.fixture
def python(tmp_path):
    """A clean environment that has what Roost needs, but not Roost."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    needed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "needed.pth").write_text("\n".join(needed) + "\n")
    return str(tmp_path / "env/bin/python")


def serve(python, app):
    return running(app, executable=python)


def answer(python, app):
    with serve(python, app) as node:
        return json.loads(node.get("/")[2])


@pytest.mark.parametrize("order", [("roost", "sdk"), ("sdk", "roost")], ids="-".join)
def test_beside_cloudflares_package_in_any_order(tmp_path, python, wheel, sdk, order):
    packages = {"roost": wheel, "sdk": sdk}
    app = write_app(tmp_path / "app", WORKER)
    for name in order:
        pip(python, "install", "--no-deps", packages[name])
    assert answer(python, app)[0] == "roost.compat.workers"
    tell = [python, "-c", "import importlib.util as u; print(u.find_spec('workers').origin)"]
    found = subprocess.run(tell, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "workers/__init__.py" in found  # elsewhere it is theirs
    asked = [
        python,
        "-c",
        "import roost.names, workers, asgi; from workers import Response; print(workers.__name__, asgi.__name__)",
    ]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path).stdout
    assert found.split() == ["roost.compat.workers", "roost.compat.asgi"]
    pip(python, "uninstall", "-y", "workers-runtime-sdk")
    assert answer(python, app)[0] == "roost.compat.workers"
    pip(python, "install", "--no-deps", sdk)
    pip(python, "uninstall", "-y", "roost")
    kept = subprocess.run(tell, capture_output=True, text=True, timeout=60, check=True).stdout
    assert Path(kept.strip()).is_file()


def test_the_wheel_has_nothing_of_theirs(wheel):
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    tops = {line.split()[0].split("/")[0] for line in listed.splitlines()[1:]}
    assert tops == {"roost", next(top for top in tops if top.endswith(".dist-info"))}


def test_vendored_packages_are_found_and_the_working_directory_is_not(tmp_path, sdk):
    """`python_modules` lies beside the configuration, however deep `main` is, and may have the SDK in it."""
    app = tmp_path / "app"
    deep = app / "src/worker"
    deep.mkdir(parents=True)
    (deep / "entry.py").write_text(WORKER.replace("import sys\n", "import sys\nimport vendored\nassert vendored.HERE\n", 1))
    modules = app / "python_modules"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", sdk, modules], check=True, timeout=60)
    (modules / "vendored.py").write_text("HERE = True\n")
    (app / "wrangler.toml").write_text('name = "deep"\nmain = "src/worker/entry.py"\ncompatibility_date = "2026-11-01"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise RuntimeError('from the working directory')\n")
    for mode in ("--hosts=1", "--inline"):
        with running(app, mode, cwd=elsewhere) as node:
            name, path = json.loads(node.get("/")[2])
        assert name == "roost.compat.workers"
        assert str(elsewhere) not in path
        assert "" not in path


def test_a_name_that_is_not_there():
    asked = [sys.executable, "-c", "import roost.names, workers.nothing"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stderr
    assert "Roost has no workers.nothing; it has asgi, js," in said
