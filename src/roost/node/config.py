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

from roost.errors import ConfigError
from roost.node.class_config import CodeUpdate, code_update_of, exports_of, migrations_of
from roost.node.config_values import table as _table
from roost.node.config_values import text as _text
from roost.node.dates import compat_for
from roost.node.settings import nearest
from roost.storage.assets import HTML_HANDLING, NOT_FOUND_HANDLING
from roost.storage.migrations import Exports, Migration

if TYPE_CHECKING:
    from pathlib import Path

    from roost.api.runtime import Compat

FILES = ("wrangler.toml", "wrangler.jsonc", "wrangler.json")
DEFAULT_COMPATIBILITY_DATE = "2026-10-01"

_KEYS = (
    "$schema", "name", "main", "compatibility_date", "compatibility_flags", "vars", "durable_objects", "migrations", "env",
    "assets", "triggers", "dev", "limits", "observability", "workers_dev", "routes", "route", "preview_urls", "rules",
    "build", "placement", "account_id", "services", "kv_namespaces", "r2_buckets", "d1_databases", "queues", "ai",
    "workflows", "send_email", "vectorize", "hyperdrive", "browser", "containers", "tail_consumers", "logpush", "minify",
    "exports", "keep_vars", "no_bundle", "find_additional_modules", "upload_source_maps", "ratelimits", "version_metadata",
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
_NOT_INHERITED = ("vars", "durable_objects", "services", "kv_namespaces", "ratelimits", "version_metadata", *_UNSUPPORTED)


_log = logging.getLogger("roost.node")


class AssetsConfig(msgspec.Struct, frozen=True):
    """`assets`: a folder of static files."""

    directory: str
    binding: str = ""
    not_found_handling: str = "none"
    html_handling: str = "auto-trailing-slash"
    run_worker_first: bool | list[str] = False


class Service(msgspec.Struct, frozen=True):
    """A `services` entry that names an entrypoint of this app; `Default` is the main one."""

    entrypoint: str = "Default"
    props: dict[str, Any] = {}


class RateLimits(msgspec.Struct, frozen=True):
    """A `ratelimits` entry: so many of one key in a period. Bindings of one `namespace_id` count together."""

    namespace_id: str
    limit: int
    period_s: int


class App(msgspec.Struct, frozen=True):
    """One app as it will run."""

    folder: str
    name: str
    main: str
    compatibility_date: str
    variables: dict[str, Any]
    bindings: dict[str, str]
    services: dict[str, Service]
    kv_namespaces: dict[str, str]
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
    ratelimits: dict[str, RateLimits] = {}
    version_metadata: str = ""  # the binding
    version: tuple[str, str, str] = ("", "", "")  # its id, tag and time; nothing if it is no version that is kept

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
    path = config or next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder} has no {', '.join(FILES[:-1])} or {FILES[-1]}; is it the app's folder?")
    raw = _read(path)
    warnings = [
        f"{path.name}: unknown key {key!r} is ignored.{nearest(key, list(_KEYS))}" for key in raw if key not in _KEYS
    ]
    raw = _for_env(raw, env, path, warnings)
    raw = {"name": default_name or folder.resolve().name, **raw}
    main = raw.get("main")
    if not isinstance(main, str) or not main:
        raise ConfigError(f'{path}: "main" is missing; it names the worker\'s Python file.', key="main")
    main_path = (path.parent / main).resolve()
    if not main_path.is_file():
        raise ConfigError(f"{path}: main: {main_path} does not exist.", key="main")
    if main_path.suffix != ".py":
        raise ConfigError(f"{path}: main: {main} is not a Python file; Roost runs Python workers.", key="main")
    for key, what in _UNSUPPORTED.items():
        if raw.get(key):
            raise ConfigError(f"{path}: {key}: {what} are not supported by Roost yet.", key=key)
    dev = _table(raw.get("dev", {}), "dev", path)
    if dev.get("port") is not None and type(dev["port"]) is not int:
        raise ConfigError(f"{path}: dev.port must be a number.", key="dev.port")
    _check_names(raw, path)
    day, flags = _date(raw.get("compatibility_date"), path, warnings), _flags(raw, path)
    compat_for(day, flags, warnings, path.name)
    return App(
        folder=str(folder.resolve()),
        name=_text(raw["name"], "name", path),
        main=str(main_path),
        compatibility_date=day,
        compatibility_flags=flags,
        variables={
            **_table(raw.get("vars", {}), "vars", path),
            **_secrets(secrets or folder, env),
            **_given(variables or []),
        },
        bindings=_bindings(raw, path),
        services=_services(raw, path),
        kv_namespaces=_kv_namespaces(raw, path),
        crons=_crons(raw, path),
        assets=_assets(raw.get("assets"), path),
        ip=dev.get("ip"),
        port=dev.get("port"),
        warnings=warnings,
        cpu_ms=_cpu_ms(raw, path),
        migrations=migrations_of(raw, path, _bindings(raw, path), warnings),
        exports=exports_of(raw, path, _bindings(raw, path), warnings),
        code_update=code_update_of(raw, path),
        ratelimits=_ratelimits(raw, path),
        version_metadata=_version_metadata(raw, path),
    )


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


def _services(raw: dict[str, Any], path: Path) -> dict[str, Service]:
    entries = raw.get("services", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: services must be a list.", key="services")
    found: dict[str, Service] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("binding", "service")):
            raise ConfigError(f"{path}: each of services needs a binding and a service.", key="services")
        name = raw["name"]
        if entry["service"] != name:
            raise ConfigError(
                f"{path}: services: {entry['binding']} is another worker ({entry['service']}); Roost binds entrypoints of "
                f"the same app only (service = {name!r}).",
                key="services",
            )
        props = _table(entry.get("props", {}), "services.props", path)
        found[entry["binding"]] = Service(_text(entry.get("entrypoint", "Default"), "services.entrypoint", path), props)
    return found


def _check_names(raw: dict[str, Any], path: Path) -> None:
    """Each name in `env` is one thing."""
    assets = raw.get("assets")
    names = [*_table(raw.get("vars", {}), "vars", path), *_bindings(raw, path), *_services(raw, path)]
    names += [
        *_kv_namespaces(raw, path),
        *_ratelimits(raw, path),
        *filter(None, [_version_metadata(raw, path)]),
        *([assets["binding"]] if isinstance(assets, dict) and assets.get("binding") else []),
    ]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: {name} is bound twice; each name in env can be one thing only.", key=name)


def _kv_namespaces(raw: dict[str, Any], path: Path) -> dict[str, str]:
    entries = raw.get("kv_namespaces", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: kv_namespaces must be a list.", key="kv_namespaces")
    found: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("binding"), str):
            raise ConfigError(f"{path}: each of kv_namespaces needs a binding.", key="kv_namespaces")
        found[entry["binding"]] = _text(entry.get("id") or entry["binding"], "kv_namespaces.id", path)
    return found


def _ratelimits(raw: dict[str, Any], path: Path) -> dict[str, RateLimits]:
    entries = raw.get("ratelimits", [])
    found: dict[str, RateLimits] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        table = entry if isinstance(entry, dict) else {}
        simple = table.get("simple")
        limit, period = (simple.get("limit"), simple.get("period")) if isinstance(simple, dict) else (None, None)
        name = table.get("name")
        if type(limit) is not int or limit < 1 or period not in (10, 60) or not isinstance(name, str):
            raise ConfigError(
                f"{path}: each of ratelimits needs a name, a namespace_id and simple = {{ limit = N, period = 10 or 60 }}.",
                key="ratelimits",
            )
        namespace = str(table.get("namespace_id", name))
        found[name] = RateLimits(_text(namespace, "ratelimits.namespace_id", path), limit, int(period))
    return found


def _version_metadata(raw: dict[str, Any], path: Path) -> str:
    table = _table(raw.get("version_metadata", {}), "version_metadata", path)
    return _text(table["binding"], "version_metadata.binding", path) if "binding" in table else ""


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


def _assets(value: Any, path: Path) -> AssetsConfig | None:
    if value is None:
        return None
    table = _table(value, "assets", path)
    directory = (path.parent / _text(table.get("directory", ""), "assets.directory", path)).resolve()
    if not directory.is_dir():
        raise ConfigError(f"{path}: assets.directory: {directory} is not a folder.", key="assets.directory")
    known = list(AssetsConfig.__struct_fields__)
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: assets: unknown key {key!r}.{nearest(key, known)}", key=f"assets.{key}")
    first = table.get("run_worker_first", False)
    if not isinstance(first, bool) and not (isinstance(first, list) and all(isinstance(each, str) for each in first)):
        raise ConfigError(
            f"{path}: assets.run_worker_first is true, false or a list of paths such as '/api/*' and '!/api/docs/*'.",
            key="assets.run_worker_first",
        )
    return AssetsConfig(
        str(directory),
        _text(table.get("binding", ""), "assets.binding", path),
        _one_of(table.get("not_found_handling", "none"), NOT_FOUND_HANDLING, "assets.not_found_handling", path),
        _one_of(table.get("html_handling", HTML_HANDLING[0]), HTML_HANDLING, "assets.html_handling", path),
        first,
    )


def _one_of(value: Any, allowed: tuple[str, ...], key: str, path: Path) -> str:
    if value not in allowed:
        more = nearest(str(value), list(allowed))
        raise ConfigError(f"{path}: {key} is {value!r}; it is one of {', '.join(allowed)}.{more}", key=key)
    return str(value)


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
