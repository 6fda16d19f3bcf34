"""node/versions.py: which code a node runs, what is kept of it, and what a damaged list or a cut copy does."""

import shutil

import pytest

from conftest import write_app
from roost.errors import ConfigError
from roost.node import versions as module
from roost.node.versions import KEPT, Source, Version, Versions

WORKER = "from workers import WorkerEntrypoint\nclass Default(WorkerEntrypoint):\n    pass\n"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def versions(data):
    return Versions(data)


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app", WORKER)


def deploy(versions, app, text=None, **more):
    """A new version of the app's folder, which runs from now on."""
    if text is not None:
        (app / "worker.py").write_text(WORKER + text)
    version, _ = versions.add(Source(app), **more)
    versions.activate(version)
    return version


def numbers(versions):
    return [version.number for version in versions.all()]


def test_the_last_ten_are_kept_and_what_runs(versions, app):
    assert KEPT == 10
    first = deploy(versions, app)
    for number in range(2, 11):
        deploy(versions, app, f"# {number}")
    assert numbers(versions) == list(range(1, 11))
    versions.activate(first)  # rolled back
    deploy_without_activation, _ = versions.add(Source(app))
    versions.keep(deploy_without_activation)
    assert numbers(versions) == list(range(1, 12))
    assert versions.active.number == 1
    versions.activate(first)
    assert numbers(versions) == [1, *range(3, 12)]  # the oldest that does not run is gone
    assert not versions.folder(Version(2, "", 0)).exists()
    assert versions.folder(first).is_dir()


def test_one_version_is_active(versions, app):
    assert versions.active is None
    first = deploy(versions, app)
    assert versions.active == first
    second, _ = versions.add(Source(app), "what is new")
    assert versions.active.number == 1  # not yet
    versions.activate(second)
    assert [(each.number, each.active, each.message) for each in versions.all()] == [
        (1, False, ""),
        (2, True, "what is new"),
    ]


def test_what_to_roll_back_to(versions, app):
    with pytest.raises(ConfigError, match=r"there is no earlier version \(there are: none\)"):
        versions.find(None)
    for number in (1, 2, 3):
        deploy(versions, app, f"# {number}")
    assert versions.find(None).number == 2
    assert versions.find(1).number == 1
    versions.activate(versions.find(2))
    assert versions.find(None).number == 1
    versions.activate(versions.find(1))
    with pytest.raises(ConfigError, match=r"there is no earlier version \(there are: 1, 2, 3\)"):
        versions.find(None)
    with pytest.raises(ConfigError, match=r"there is no version 9 \(there are: 1, 2, 3\)"):
        versions.find(9)


@pytest.mark.parametrize("damage", [b"[{", b'{"number": 1}', b'[{"number": "one", "source": "", "deployed_ms": 1}]'])
def test_a_damaged_list_is_said_and_numbers_go_on(versions, app, caplog, damage):
    deploy(versions, app)
    deploy(versions, app, "# 2")
    (versions.folder(versions.active).parent / "versions.json").write_bytes(damage)
    assert versions.all() == []
    assert "cannot be read" in caplog.text
    versions.prune()  # nothing is removed while it is not known what is there
    assert versions.folder(Version(1, "", 0)).is_dir()
    assert deploy(versions, app, "# 3").number == 3  # no folder is written over
    assert numbers(versions) == [3]


def test_what_a_cut_start_has_left_is_removed(versions, app, data):
    deploy(versions, app)
    folder = data / "versions"
    for name in ("7", "7.secrets", "note.txt", "x7"):
        (folder / name).mkdir()
    versions.prune()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "note.txt", "versions.json", "x7"]


def test_without_a_list_all_folders_are_leftovers(versions, data):
    (data / "versions" / "3").mkdir(parents=True)
    versions.prune()
    assert not list((data / "versions").iterdir())


def test_a_copy_that_failed_leaves_nothing(versions, app, data, monkeypatch):
    def cut(tree, folder, secrets):
        folder.mkdir(parents=True)
        (folder / "worker.py").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "copy", cut)
    with pytest.raises(OSError, match="No space left"):
        versions.add(Source(app))
    assert not (data / "versions" / "1").exists()
    assert versions.all() == []


def test_a_folder_that_changes_meanwhile_is_no_version(versions, app, data, monkeypatch):
    real = module.copy

    def changed(tree, folder, secrets):
        real(tree, folder, secrets)
        (folder / "worker.py").write_text(WORKER + "# changed")

    monkeypatch.setattr(module, "copy", changed)
    with pytest.raises(ConfigError, match="was changed meanwhile"):
        versions.add(Source(app))
    assert not (data / "versions" / "1").exists()


def test_another_digest_than_expected_is_no_version(versions, app):
    _, found = versions.look_at(Source(app))
    (app / "worker.py").write_text(WORKER + "# edited")
    with pytest.raises(ConfigError, match="was changed meanwhile"):
        versions.add(Source(app), expected=found)
    _, found = versions.look_at(Source(app))
    assert versions.add(Source(app), expected=found)[0].digest == found


def test_a_copy_may_not_take_the_space_of_objects(data, app):
    free = shutil.disk_usage(data).free
    with pytest.raises(ConfigError, match=r"storage.min_free_bytes"):
        Versions(data, min_free_bytes=free * 2).add(Source(app))
    assert Versions(data, min_free_bytes=1).add(Source(app))[0].number == 1


def test_links_out_of_the_folder_are_left_out_and_said(versions, app, tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    (app / "link.txt").symlink_to(tmp_path / "secret.txt")
    version, lines = versions.add(Source(app))
    assert lines == [f"link.txt is left out: it leads out of {app}, or is no file"]
    assert not (versions.folder(version) / "link.txt").exists()


def test_secrets_are_kept_beside_and_found(versions, app):
    (app / ".dev.vars").write_text("TOKEN=abc\n")
    version = deploy(versions, app)
    folder = versions.folder(version)
    assert not (folder / ".dev.vars").exists()
    assert (folder.with_name("1.secrets") / ".dev.vars").exists()
    read = versions.app(version)
    assert read.variables["TOKEN"] == "abc"
    assert read.folder == str(app.resolve())
    assert read.main == str(folder / "worker.py")
    number, message, made = read.version
    assert (number, message) == ("1", "")
    assert made.endswith("Z")
    assert "+00:00" not in made


def test_what_it_was_read_with_is_kept(versions, app):
    text = (app / "wrangler.toml").read_text() + '\n[env.other.vars]\nWHICH = "other"\n'
    (app / "second.toml").write_text(text)
    version, _ = versions.add(Source(app, str(app / "second.toml"), "other", ["MORE:1"]))
    versions.activate(version)
    again = Versions(versions.folder(version).parent.parent).active
    assert (again.config, again.env, again.variables) == ("second.toml", "other", ["MORE:1"])
    assert versions.app(again).variables == {"WHICH": "other", "MORE": "1"}


def test_a_configuration_from_elsewhere_is_refused(versions, app, tmp_path):
    shutil.copy(app / "wrangler.toml", tmp_path / "elsewhere.toml")
    with pytest.raises(ConfigError, match="is not in"):
        versions.add(Source(app, str(tmp_path / "elsewhere.toml")))


def test_the_commit_of_a_folder(tmp_path, monkeypatch):
    assert module._commit_of(tmp_path / "nowhere") == ""
    monkeypatch.setenv("PATH", "")
    assert module._commit_of(tmp_path) == ""


# what a start runs


def test_a_first_start_is_a_new_version(versions, app):
    choice = versions.choose(Source(app), from_folder=False)
    assert choice.app is None
    assert choice.line == ""
    assert choice.new == versions.look_at(Source(app))[1]


def test_a_start_with_what_ran_runs_the_copy(versions, app):
    version = deploy(versions, app)
    choice = versions.choose(Source(app), from_folder=False)
    assert choice.app.main == str(versions.folder(version) / "worker.py")
    assert (choice.line, choice.new) == ("", "")
    assert versions.choose(Source(app), from_folder=True).app is not None


def test_code_that_no_version_has_is_never_passed_over(versions, app):
    deploy(versions, app)
    (app / "worker.py").write_text(WORKER + "# edited")
    choice = versions.choose(Source(app), from_folder=False)
    assert choice.app is None
    assert "is not version 1, which ran last" in choice.line
    assert choice.new


def test_code_that_was_rolled_back_from_is_not_run_again(versions, app):
    first = deploy(versions, app)
    deploy(versions, app, "# second")
    versions.activate(first)
    choice = versions.choose(Source(app), from_folder=False)
    assert choice.app.main == str(versions.folder(first) / "worker.py")
    assert "version 1 runs" in choice.line
    assert "is version 2, which was replaced or rolled back from" in choice.line
    assert choice.new == ""
    asked = versions.choose(Source(app), from_folder=True)
    assert asked.app is None
    assert asked.new


def test_a_version_that_cannot_be_read(versions, app, caplog):
    first = deploy(versions, app)
    deploy(versions, app, "# second")
    versions.activate(first)
    (versions.folder(first) / "wrangler.toml").write_text("name =")
    choice = versions.choose(Source(app), from_folder=False)
    assert choice.app is None
    assert "version 1, which ran last, cannot be read" in choice.line
    assert choice.new
    assert "version 1 cannot be read" in caplog.text


def test_a_folder_that_cannot_be_a_version(versions, tmp_path):
    choice = versions.choose(Source(tmp_path / "nothing"), from_folder=False)
    assert choice.app is None
    assert "cannot be rolled back to" in choice.line
    assert choice.new == ""


def test_the_active_one_of_equal_digests_is_chosen(versions, app):
    first, second = deploy(versions, app), deploy(versions, app)
    third, _ = versions.add(Source(app))
    versions.keep(third)
    assert first.digest == second.digest == third.digest
    assert versions.with_digest(first.digest).number == 2
    versions.activate(deploy(versions, app, "# other"))
    assert versions.with_digest(first.digest).number == 3
    assert versions.with_digest("nothing") is None


def test_a_version_of_an_older_roost_has_its_digest_made(versions, app):
    version, _ = versions.add(Source(app))
    found, version.digest = version.digest, ""
    versions.activate(version)
    assert versions.with_digest(found).number == 1
    shutil.rmtree(versions.folder(version))
    assert versions.with_digest(found) is None
