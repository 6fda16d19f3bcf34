"""The app's configuration: `wrangler.toml`, `.jsonc` or `.json`, as Cloudflare documents it (reference 6.1).

Read once, here; no other file reads configuration or the environment. A key that Roost does not know is a warning with the
nearest name; a binding that it cannot serve is an error at start, never at the first request.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import tomllib
from datetime import date
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyjson5

from roost.bindings import KINDS
from roost.bindings.assets import AssetsConfig, config_of
from roost.bindings.kind import Configs, Place, Version
from roost.config_values import nearest
from roost.config_values import table as _table
from roost.config_values import text as _text
from roost.errors import ConfigError
from roost.node.class_config import CodeUpdate, code_update_of, exports_of, migrations_of
from roost.node.dates import compat_for
from roost.storage.migrations import Exports, Migration

if TYPE_CHECKING:
    from pathlib import Path

    from roost.api.runtime import Compat

FILES = ("wrangler.toml", "wrangler.jsonc", "wrangler.json")
DEFAULT_COMPATIBILITY_DATE = "2026-10-01"

_KEYS = (
    "$schema", "name", "main", "compatibility_date", "compatibility_flags", "vars", "durable_objects", "migrations", "env",
    "triggers", "dev", "limits", "observability", "workers_dev", "routes", "route", "preview_urls", "rules",
    "build", "placement", "account_id", "r2_buckets", "d1_databases", "queues", "ai",
    "workflows", "send_email", "vectorize", "hyperdrive", "browser", "containers", "tail_consumers", "logpush", "minify",
    "exports", "keep_vars", "no_bundle", "find_additional_modules", "upload_source_maps",
    *(kind.KEY for kind in KINDS),
)  # fmt: skip
_UNSUPPORTED = {
    "r2_buckets": "R2 buckets",
    "d1_databases": "D1 databases",
    "queues": "queues",
    "ai": "AI bindings",
    "workflows": "workflows",
    "send_email": "email bindings",
    "vectorize": "vector indexes",
    "hyperdrive": "Hyperdrive bindings",
    "browser": "browser bindings",
    "containers": "containers",
    "worker_loaders": "worker loaders",
    "images": "image bindings",
    "media": "media bindings",
    "analytics_engine_datasets": "Analytics Engine datasets",
    "mtls_certificates": "mTLS certificates",
    "dispatch_namespaces": "dispatch namespaces",
    "pipelines": "pipelines",
    "secrets_store_secrets": "secrets of a store",
    "vpc_services": "VPC services",
    "tail_consumers": "tail consumers",
}
_NOT_INHERITED = ("vars", "durable_objects", *(kind.KEY for kind in KINDS if not kind.IS_INHERITED), *_UNSUPPORTED)


_log = logging.getLogger("roost.node")


class App(msgspec.Struct, frozen=True):
    """One app as it will run."""

    folder: str
    name: str
    main: str
    compatibility_date: str
    variables: dict[str, Any]
    bindings: dict[str, str]
    others: dict[str, Configs]  # bindings of other kinds than objects, by their key (`roost.bindings`)
    crons: list[str]
    assets: AssetsConfig | None
    ip: str | None
    port: int | None
    warnings: list[str]
    compatibility_flags: tuple[str, ...] = ()
    cpu_ms: int | None = None  # `limits.cpu_ms`
    migrations: list[Migration] = []
    exports: Exports | None = None  # in place of `migrations`
    code_update: CodeUpdate = CodeUpdate()
    version: Version = Version()

    def compat(self) -> Compat:
        """What the compatibility date and flags choose."""
        return compat_for(self.compatibility_date, self.compatibility_flags, [], self.main)


def read_app(
    folder: Path,
    *,
    config: Path | None = None,
    env: str | None = None,
    variables: list[str] | None = None,
    secrets: Path | None = None,
    default_name: str | None = None,
) -> App:
    """The app in `folder`; its `.env` or `.dev.vars` may be in another (`secrets`). `default_name` is for one whose
    configuration has none; else the folder's. Raises ConfigError with one clear line."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder.")
    path = config or _configuration_of(folder)
    raw = _read(path)
    warnings = [
        f"{path.name}: unknown key {key!r} is ignored.{nearest(key, list(_KEYS))}" for key in raw if key not in _KEYS
    ]
    raw = _for_env(raw, env, path, warnings)
    raw = {"name": default_name or folder.resolve().name, **raw}
    main = _main(raw, path)
    for key, what in _UNSUPPORTED.items():
        if raw.get(key):
            raise ConfigError(f"{path}: {key}: {what} are not supported by Roost yet.", key=key)
    dev = _table(raw.get("dev", {}), "dev", path)
    if dev.get("port") is not None and type(dev["port"]) is not int:
        raise ConfigError(f"{path}: dev.port must be a number.", key="dev.port")
    bindings = _bindings(raw, path)
    others = _others(raw, path, bindings)
    day, flags = _date(raw.get("compatibility_date"), path, warnings), _flags(raw, path)
    compat_for(day, flags, warnings, path.name)
    return App(
        folder=str(folder.resolve()),
        name=_text(raw["name"], "name", path),
        main=str(main),
        compatibility_date=day,
        compatibility_flags=flags,
        variables={
            **_table(raw.get("vars", {}), "vars", path),
            **_secrets(secrets or folder, env),
            **_given(variables or []),
        },
        bindings=bindings,
        others=others,
        crons=_crons(raw, path),
        assets=None if raw.get("assets") is None else config_of(raw["assets"], path),
        ip=dev.get("ip"),
        port=dev.get("port"),
        warnings=warnings,
        cpu_ms=_cpu_ms(raw, path),
        migrations=migrations_of(raw, path, bindings, warnings),
        exports=exports_of(raw, path, bindings, warnings),
        code_update=code_update_of(raw, path),
    )


def _configuration_of(folder: Path) -> Path:
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder} has no {', '.join(FILES[:-1])} or {FILES[-1]}; is it the app's folder?")
    return path


def _main(raw: dict[str, Any], path: Path) -> Path:
    main = raw.get("main")
    if not isinstance(main, str) or not main:
        raise ConfigError(f'{path}: "main" is missing; it names the worker\'s Python file.', key="main")
    main_path = (path.parent / main).resolve()
    if not main_path.is_file():
        raise ConfigError(f"{path}: main: {main_path} does not exist.", key="main")
    if main_path.suffix != ".py":
        raise ConfigError(f"{path}: main: {main} is not a Python file; Roost runs Python workers.", key="main")
    return main_path


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors put a byte order mark in front
        raw = tomllib.loads(text) if path.suffix == ".toml" else pyjson5.decode(text)
    except pyjson5.Json5DecoderException as error:
        raise ConfigError(f"{path}: cannot be parsed: {error.args[0]}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: cannot be parsed: it is nested too deeply.") from error
    except ValueError as error:  # TOML's own, text that is not UTF-8, an escape of no character
        raise ConfigError(f"{path}: cannot be parsed: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return _table(raw, "the file", path)


def _for_env(raw: dict[str, Any], env: str | None, path: Path, warnings: list[str]) -> dict[str, Any]:
    """The configuration of one environment: its keys over the top level's; bindings and vars are not inherited."""
    environments = _table(raw.get("env", {}), "env", path)
    if env is None:
        return raw
    if env not in environments:
        raise ConfigError(
            f"{path}: has no environment {env!r} (it has: {', '.join(environments) or 'none'})."
            f"{nearest(env, list(environments))}",
            key="env",
        )
    inherited = {key: value for key, value in raw.items() if key not in _NOT_INHERITED}
    merged = {**inherited, **_table(environments[env], f"env.{env}", path)}
    lost = [key for key in _NOT_INHERITED if raw.get(key) and key not in environments[env]]
    own = environments[env].get("vars", {})
    top = raw.get("vars", {})
    if "vars" not in lost and isinstance(own, dict) and isinstance(top, dict):
        lost += [f"vars.{key}" for key in top if key not in own]
    if lost:
        what = ", ".join(sorted(lost))
        warnings.append(f"{path.name}: env.{env} does not inherit {what} of the top level; write them there, too.")
    if "name" not in environments[env] and "name" in raw:
        merged["name"] = f"{raw['name']}-{env}"
    return merged


def _date(value: Any, path: Path, warnings: list[str]) -> str:
    if value is None:
        warnings.append(f"{path.name}: no compatibility_date; {DEFAULT_COMPATIBILITY_DATE} is assumed.")
        return DEFAULT_COMPATIBILITY_DATE
    text = value.isoformat() if isinstance(value, date) else str(value)
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ConfigError(
            f"{path}: compatibility_date: {text!r} is not a date (YYYY-MM-DD).", key="compatibility_date"
        ) from error


def _flags(raw: dict[str, Any], path: Path) -> tuple[str, ...]:
    flags = raw.get("compatibility_flags", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ConfigError(f"{path}: compatibility_flags must be a list of strings.", key="compatibility_flags")
    return tuple(flags)


def _bindings(raw: dict[str, Any], path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    entries = _table(raw.get("durable_objects", {}), "durable_objects", path).get("bindings", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: durable_objects.bindings must be a list.", key="durable_objects.bindings")
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("name"), str)
            or not isinstance(entry.get("class_name"), str)
        ):
            raise ConfigError(
                f"{path}: each of durable_objects.bindings needs a name and a class_name.",
                key="durable_objects.bindings",
            )
        if entry.get("script_name") not in (None, raw.get("name")):
            raise ConfigError(
                f"{path}: durable_objects.bindings: {entry['name']} is of another script ({entry['script_name']}); that is "
                "not supported by Roost yet.",
                key="durable_objects.bindings",
            )
        found[entry["name"]] = entry["class_name"]
    return found


def _others(raw: dict[str, Any], path: Path, bindings: dict[str, str]) -> dict[str, Configs]:
    """The bindings besides objects, by their kind's key. Each name in `env` is one thing."""
    place = Place(path, _text(raw["name"], "name", path))
    found = {kind.KEY: kind.parse(raw[kind.KEY], place) for kind in KINDS if raw.get(kind.KEY) is not None}
    names = [*_table(raw.get("vars", {}), "vars", path), *bindings]
    names += [name for configs in found.values() for name in configs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: {name} is bound twice; each name in env can be one thing only.", key=name)
    return found


def _cpu_ms(raw: dict[str, Any], path: Path) -> int | None:
    cpu_ms = _table(raw.get("limits", {}), "limits", path).get("cpu_ms")
    if cpu_ms is not None and (type(cpu_ms) is not int or not 50 <= cpu_ms <= 300_000):
        raise ConfigError(f"{path}: limits.cpu_ms must be a number between 50 and 300000.", key="limits.cpu_ms")
    return cpu_ms


def _crons(raw: dict[str, Any], path: Path) -> list[str]:
    crons = _table(raw.get("triggers", {}), "triggers", path).get("crons", [])
    if not isinstance(crons, list) or not all(isinstance(cron, str) for cron in crons):
        raise ConfigError(f"{path}: triggers.crons must be a list of strings.", key="triggers.crons")
    if crons:
        from roost.host.calls.crons import next_time_ms

        for cron in crons:
            next_time_ms(cron, 0)
    return list(dict.fromkeys(crons))


def _secrets(folder: Path, env: str | None) -> dict[str, str]:
    """`.dev.vars` (or `.dev.vars.ENV` alone); without it `.env`, `.env.local`, `.env.ENV` and `.env.ENV.local`, later ones
    over earlier. Source: platform documentation, Workers, "Local development", secrets."""
    for name in ([f".dev.vars.{env}"] if env else []) + [".dev.vars"]:
        if (folder / name).is_file():
            return _dotenv(folder / name)
    found: dict[str, str] = {}
    for name in (".env", ".env.local", *([f".env.{env}", f".env.{env}.local"] if env else [])):
        if (folder / name).is_file():
            found |= _dotenv(folder / name)
    return found


def _dotenv(path: Path) -> dict[str, str]:
    """KEY=value lines as dotenv reads them: quotes, escapes, comments, values of several lines. `${NAME}` stays."""
    try:
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return _dotenv_values(text, path)


_VARIABLE: Final = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)


def _dotenv_values(text: str, path: Path) -> dict[str, str]:
    from dotenv.parser import parse_stream  # only for those who have such a file

    found: dict[str, str] = {}
    is_in_key = False  # of several lines, that is not quoted: all of it is secret, also what looks like a name
    for binding in parse_stream(io.StringIO(text)):
        if is_in_key or (not binding.error and binding.key is None):  # an empty line, a comment
            is_in_key = is_in_key and "-----END" not in binding.original.string
            continue
        is_in_key = (binding.value or "").startswith("-----BEGIN") and "-----END" not in (binding.value or "")
        if is_in_key:
            _log.warning("node: %s: %r is a key of several lines; put it in quotes", path, binding.key)
            continue
        if binding.key is not None and binding.value is not None and _VARIABLE.fullmatch(binding.key):
            found[binding.key] = binding.value
            continue
        text = binding.original.string.lstrip("\n")
        first, _, rest = text.partition("\n")
        name = first.partition("=")[0].strip()  # anything else may be a piece of a secret
        _log.warning(
            "node: %s: %s is not KEY=value, or its quote has no end; quote a value of several lines",
            path, f"the line of {name!r}" if "=" in first and _VARIABLE.fullmatch(name) else "a line",
        )  # fmt: skip
        if binding.error:
            found |= _dotenv_values(rest, path)  # the quote has taken the lines after it, too
    return found


def _given(variables: list[str]) -> dict[str, str]:
    """`--var KEY:VALUE`."""
    found = {}
    for text in variables:
        key, colon, value = text.partition(":")
        if not colon or not key:
            raise ConfigError(f"--var {text!r}: write it as KEY:VALUE.", key="--var")
        found[key] = value
    return found


def data_folder(app: App, given: str | None) -> str:
    """Where objects' state is kept: `--data`, or `.roost/data` in the app's folder. Raises ConfigError if unusable."""
    path = os.path.abspath(given or os.path.join(app.folder, ".roost", "data"))
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        probe = os.path.join(path, ".probe")
        with open(probe, "wb"):
            pass
        os.unlink(probe)
        if given is None:  # nobody wants it in a repository
            ignore = os.path.join(os.path.dirname(path), ".gitignore")
            if not os.path.exists(ignore):
                with open(ignore, "w", encoding="ascii") as file:
                    file.write("*\n")
    except OSError as error:
        raise ConfigError(
            f"the data folder {path} cannot be used: {error.strerror}; choose another with --data."
        ) from error
    _make_private(path)
    return path


def _make_private(path: str) -> None:
    """What objects store is its owner's alone: also in a folder that was made beforehand."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if not mode & 0o077:
        return
    try:
        os.chmod(path, 0o700)
    except OSError:  # it is somebody else's
        _log.warning("node: others can read the data folder %s (its mode is %o); make it 0700", path, mode)
