"""node/config.py and node/settings.py: what is read, and the one clear line when it is wrong."""

import pytest

from roost.errors import ConfigError
from roost.node.config import read_app
from roost.node.settings import Settings, parse_settings, read_settings


def write(folder, name, text, main="worker.py"):
    (folder / name).write_text(text)
    (folder / main).parent.mkdir(parents=True, exist_ok=True)
    (folder / main).write_text("")
    return folder


TOML = 'name = "a"\nmain = "worker.py"\ncompatibility_date = "2026-01-01"\n'


def test_three_formats_mean_the_same(tmp_path):
    apps = []
    texts = {
        "wrangler.toml": TOML + '[vars]\nA = "b"\n[[durable_objects.bindings]]\nname = "R"\nclass_name = "Room"\n',
        "wrangler.jsonc": '{"name": "a", /* c */ "main": "worker.py", "compatibility_date": "2026-01-01", // d\n'
        '"vars": {"A": "b"}, "durable_objects": {"bindings": [{"name": "R", "class_name": "Room"},]},}',
        "wrangler.json": '{"name": "a", "main": "worker.py", "compatibility_date": "2026-01-01", "vars": {"A": "b"},'
        '"durable_objects": {"bindings": [{"name": "R", "class_name": "Room"}]}}',
    }
    for name, text in texts.items():
        folder = tmp_path / name.replace(".", "")
        folder.mkdir()
        app = read_app(write(folder, name, text))
        apps.append((app.name, app.variables, app.bindings, app.compatibility_date, app.warnings))
    assert apps[0] == apps[1] == apps[2] == ("a", {"A": "b"}, {"R": "Room"}, "2026-01-01", [])


def test_unknown_key_is_a_warning_with_the_nearest(tmp_path):
    app = read_app(write(tmp_path, "wrangler.toml", TOML + 'compatability_flags = ["x"]\n'))
    assert app.warnings == [
        "wrangler.toml: unknown key 'compatability_flags' is ignored. Did you mean \"compatibility_flags\"?"
    ]


def test_environments(tmp_path):
    text = TOML + '[vars]\nA = "top"\n[env.prod]\ncompatibility_date = "2026-02-02"\n[env.prod.vars]\nB = "prod"\n'
    app = read_app(write(tmp_path, "wrangler.toml", text), env="prod")
    assert (app.name, app.variables, app.compatibility_date) == ("a-prod", {"B": "prod"}, "2026-02-02")
    with pytest.raises(ConfigError, match=r"has no environment 'pord'.*Did you mean \"prod\""):
        read_app(tmp_path, env="pord")


def test_variables_and_secrets(tmp_path):
    write(tmp_path, "wrangler.toml", TOML + '[vars]\nA = "1"\nN = 5\n')
    (tmp_path / ".dev.vars").write_text('SECRET="s=x"\n# no\nexport B=2\n')
    app = read_app(tmp_path, variables=["A:9:9"])
    assert app.variables == {"A": "9:9", "N": 5, "SECRET": "s=x", "B": "2"}
    with pytest.raises(ConfigError, match="KEY:VALUE"):
        read_app(tmp_path, variables=["novalue"])


DOTENV = """
A=plain
 B = spaced
export C=exported
D="double quoted"
E='single # not a comment'
F=value # a comment
G="line1\\nline2"
H='line1\\nline2'
I="multi
line"
J=
K="it's"
L=a=b=c ${HOME}
M="unclosed
N="hash # inside" # outside
"""


def test_dotenv_files(tmp_path, caplog):
    write(tmp_path, "wrangler.toml", TOML)
    for encoded in (DOTENV.encode(), b"\xef\xbb\xbf" + DOTENV.replace("\n", "\r\n").encode()):
        caplog.clear()
        (tmp_path / ".dev.vars").write_bytes(encoded)
        assert read_app(tmp_path).variables == {
            "A": "plain", "B": "spaced", "C": "exported", "D": "double quoted", "E": "single # not a comment", "F": "value",
            "G": "line1\nline2", "H": "line1\\nline2", "I": "multi\nline", "J": "", "K": "it's", "L": "a=b=c ${HOME}",
            "N": "hash # inside",
        }  # fmt: skip
        assert [record.getMessage() for record in caplog.records if "the line of 'M' is not" in record.getMessage()]
    (tmp_path / ".dev.vars").write_bytes(b"A=\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_app(tmp_path)


def test_pieces_of_secrets_are_no_names(tmp_path, caplog):
    """`env` shows names, and the log says them."""
    write(tmp_path, "wrangler.toml", TOML)
    key = "KEY=-----BEGIN PRIVATE KEY-----\nMIIEvQIBADAN\nabcd==\nabc+/=\n-----END PRIVATE KEY-----\n"
    (tmp_path / ".dev.vars").write_text(f'A=1\n{key}B=2\nc2VjcmV0\nc2Vj/mV0=\nTOKEN="endless\nC=3\n')
    assert read_app(tmp_path).variables == {"A": "1", "B": "2", "C": "3"}
    for piece in ("MII", "abc", "c2V", "endless"):
        assert piece not in caplog.text
    for name in ("'KEY'", "'TOKEN'", "a line is not"):
        assert name in caplog.text


def test_which_dotenv_files_count(tmp_path):
    write(tmp_path, "wrangler.toml", TOML + "[env.staging]\n")
    for name in (".env", ".env.local", ".env.staging", ".env.staging.local"):
        (tmp_path / name).write_text(f"LAST={name}\n{name.strip('.').replace('.', '_')}=1\n")
    assert read_app(tmp_path).variables == {"LAST": ".env.local", "env": "1", "env_local": "1"}
    found = read_app(tmp_path, env="staging").variables
    assert (found["LAST"], len(found)) == (".env.staging.local", 5)
    (tmp_path / ".dev.vars").write_text("ONLY=1")
    assert read_app(tmp_path).variables == {"ONLY": "1"}
    (tmp_path / ".dev.vars.staging").write_text("ONLY=2")
    assert read_app(tmp_path, env="staging").variables == {"ONLY": "2"}


def test_a_byte_order_mark(tmp_path):
    write(tmp_path, "wrangler.toml", "")
    (tmp_path / "wrangler.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert read_app(tmp_path).name == "a"


def test_what_an_environment_does_not_inherit_is_said(tmp_path):
    kv = '[[kv_namespaces]]\nbinding = "KV"\nid = "k"\n'
    text = TOML + kv + '[vars]\nA = "1"\nB = "2"\n[env.prod.vars]\nB = "3"\n'
    assert read_app(write(tmp_path, "wrangler.toml", text), env="prod").warnings == [
        "wrangler.toml: env.prod does not inherit kv_namespaces, vars.A of the top level; write them there, too."
    ]


def test_assets(tmp_path):
    (tmp_path / "public").mkdir()
    good = (
        TOML
        + '[assets]\ndirectory = "public"\nbinding = "F"\nhtml_handling = "none"\nrun_worker_first = ["/a/*", "!/a/b"]\n'
    )
    assets = read_app(write(tmp_path, "wrangler.toml", good)).assets
    assert (assets.html_handling, assets.not_found_handling, assets.run_worker_first) == ("none", "none", ["/a/*", "!/a/b"])
    for line, says in (
        ('html_handling = "non"', "html_handling is 'non'; it is one of auto.*Did you mean \"none\""),
        ('not_found_handling = "404page"', 'Did you mean "404-page"'),
        ('dirctory = "x"', "unknown key 'dirctory'. Did you mean \"directory\""),
        ("run_worker_first = 1", "is true, false or a list of paths"),
    ):
        with pytest.raises(ConfigError, match=says):
            read_app(write(tmp_path, "wrangler.toml", TOML + f'[assets]\ndirectory = "public"\n{line}\n'))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "a"', '"main" is missing'),
        ('main = "gone.py"', "gone.py does not exist"),
        ('main = "worker.js"', "not a Python file"),
        ("main = ", "cannot be parsed"),
        ('main = "worker.py"\ncompatibility_date = "soon"', "not a date"),
        ('main = "worker.py"\nvars = 3', "vars must be a table"),
        ('main = "worker.py"\n[[r2_buckets]]\nbinding = "B"', "R2 buckets are not supported by Roost yet"),
        ('main = "worker.py"\n[[durable_objects.bindings]]\nname = "R"', "needs a name and a class_name"),
        ('main = "worker.py"\n[assets]\ndirectory = "none"', "is not a folder"),
    ],
)
def test_errors(tmp_path, text, says):
    (tmp_path / "worker.js").write_text("")
    with pytest.raises(ConfigError, match=says):
        read_app(write(tmp_path, "wrangler.toml", text))


def test_wrong_folder(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        read_app(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"has no wrangler\.toml"):
        read_app(tmp_path)


def test_settings(tmp_path):
    assert read_settings(tmp_path) == Settings()
    (tmp_path / "pyproject.toml").write_text("[tool.roost.limits]\nmax_connections = 5\n")
    assert read_settings(tmp_path).limits.max_connections == 5
    (tmp_path / "roost.toml").write_text("[limits]\nmax_connections = 7\n[hibernation]\nidle_s = 0.5\n")
    settings = read_settings(tmp_path)
    assert settings.limits.max_connections == 7
    assert settings.gateway_limits().max_connections == 7
    assert settings.hibernation.idle_s == 0.5


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"limit": {}}, r'unknown section \[limit\]. Did you mean "limits"'),
        ({"limits": {"max_conections": 1}}, r'limits.max_conections. Did you mean "max_connections"'),
        ({"limits": {"max_connections": "many"}}, "max_connections"),
        ({"limits": {"max_connections": -1}}, "must not be negative"),
        ({"limits": {"max_message_bytes": 1 << 30}}, "32 MiB"),
        ({"limits": 3}, "must be a table"),
    ],
)
def test_bad_settings(raw, says):
    with pytest.raises(ConfigError, match=says):
        parse_settings(raw, "roost.toml")


def test_every_setting_is_documented():
    import json

    import msgspec

    from conftest import ROOT

    page = (ROOT / "docs/reference/settings.md").read_text()
    for section in msgspec.structs.fields(Settings):
        for field in msgspec.structs.fields(section.type):
            default = json.dumps(field.default_factory() if field.default is msgspec.NODEFAULT else field.default)
            assert f"`{section.name}.{field.name}` | `{default}`" in page, f"{section.name}.{field.name}"
