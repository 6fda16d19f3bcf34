"""What worker code sees, asked of a node in this very process: the checks of the integration tests that need no process of
their own. There they run split as well, and with several hosts; here they are quick, and every line of them is counted."""

import contextlib
import itertools
import re
from typing import NamedTuple

import pytest

from conftest import write_app
from here import command_instead, running_here, running_instead
from integration import (
    test_abort,
    test_admin,
    test_asgi,
    test_bindings,
    test_caches,
    test_fetch,
    test_http,
    test_http_edges,
    test_kept_upstreams,
    test_migrations,
    test_objects,
    test_promises,
    test_rpc,
    test_storage,
    test_storage_cli,
    test_streams,
    test_wsgi,
)
from integration.test_fetch import upstream  # noqa: F401 - a fixture
from roost.testing import wait_for


class Suite(NamedTuple):
    """Which checks of a module, and the app that they ask."""

    module: object
    names: str
    source: str
    classes: tuple[str, ...] = ()
    config: str = ""
    more: str = ""  # of the configuration, at its end
    settings: str = ""
    make: object = None  # in place of all that: the app of a folder

    @property
    def label(self):
        return f"{self.module.__name__.rpartition('_')[2]}-{self.names.split()[0].removeprefix('test_')}"


WSGI = '[vars]\nCOLOUR = "red"\n[[kv_namespaces]]\nbinding = "KV"\nid = "kv"\n'
SERVICE = '[[services]]\nbinding = "SERVICE"\nservice = "test-app"\nentrypoint = "Service"'
SUITES = [
    Suite(
        test_streams,
        "test_streams test_a_source_is_told_that_nobody_reads",
        test_streams.SOURCE,
    ),
    Suite(
        test_caches,
        "test_what_was_put_is_there test_what_is_kept test_what_is_refused test_conditions_and_ranges"
        " test_as_sources_use_it",
        test_caches.SOURCE,
    ),
    Suite(
        test_storage,
        "test_constructor_block_finishes_before_any_event test_key_value test_list test_sql test_transactions"
        " test_limits_and_errors test_w42_nesting",
        test_storage.SOURCE,
        ("Box",),
        settings="[hibernation]\nidle_s = 0.1\n",
    ),
    Suite(
        test_promises,
        "test_storage test_a_constructor_writes_without_await test_kv_in_the_order_of_its_calls"
        " test_methods_of_a_stub_keep_their_order",
        test_promises.SOURCE,
        ("Box",),
        more=test_promises.CONFIG,
    ),
    Suite(test_abort, "test_signals", test_abort.SOURCE, ("Box",), test_abort.SELF),
    Suite(test_rpc, "test_right_value test_a_stub_passed_on test_streams_in", test_rpc.SOURCE, ("Hub",), SERVICE),
    Suite(
        test_asgi,
        "test_form_with_a_file test_websocket",
        test_asgi.APP,
        config='vars = { GREETING = "hello" }',
    ),
    Suite(test_wsgi, "test_flask test_cookies_and_headers", test_wsgi.FLASK, ("Room",), WSGI),
    Suite(test_wsgi, "test_bare", test_wsgi.BARE, config=WSGI),
    Suite(
        test_fetch,
        "test_no_cookie_is_kept test_what_is_sent_by_itself test_a_request_is_passed_on test_redirects"
        " test_a_large_body_is_passed_on_with_its_length test_a_stream_has_no_length test_head_keeps_the_length"
        " test_an_answer_is_passed_on test_compressed_bodies_are_decoded test_a_stream_is_read_as_it_comes"
        " test_tee_and_clone",
        test_fetch.SOURCE,
        settings="[limits]\nmax_fetch_connections = 10\n",
    ),
    Suite(
        test_objects,
        "test_accept_send_and_headers test_hibernation_keeps_sockets_tags_and_attachments test_sleep_then_http_request"
        " test_orders test_auto_response_does_not_wake"
        " test_close_in_the_close_handler_reaches_the_client"
        " test_send_after_close_names_the_fix"
        " test_handlers_interleave_and_starts_keep_order test_order_is_kept_while_waking"
        " test_asyncio_works_inside_handlers"
        " test_a_socket_for_a_plain_request_is_refused test_wrong_result_is_named test_ping_is_answered_without_waking",
        test_objects.SOURCE,
        ("Probe",),
        settings="[hibernation]\nidle_s = 0.05\n",
    ),
    Suite(
        test_http,
        "test_keep_alive_and_methods test_bodies_both_ways test_chunked_upload test_expect_100"
        " test_streams test_http_1_0_ends_by_closing test_body_shorter_than_promised_is_cut test_headers test_no_content"
        " test_body_limit test_an_ignored_body_does_not_deafen test_files test_no_name_leaves_the_folder test_bad_hosts",
        "",
        make=test_http.make,
    ),
    Suite(
        test_http_edges,
        "test_half_closed_websocket test_nothing_splits_a_response test_absolute_targets test_hosts"
        " test_what_is_refused test_cookies_of_several_lines_are_one_list",
        "",
        make=test_http_edges.make,
    ),
]


def calls_of(function, known):
    """The arguments of each call that the test's own parameters make."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    for row in itertools.product(*(mark.args[1] for mark in marks)):
        arguments = {}
        for mark, values in zip(marks, row, strict=True):
            names = mark.args[0]
            names = [each.strip() for each in names.split(",")] if isinstance(names, str) else list(names)
            arguments.update(zip(names, values if len(names) > 1 else [values], strict=True))
        wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
        yield {name: arguments.get(name, known.get(name)) for name in wanted}


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.label)
def test_the_checks_hold(suite, tmp_path, upstream):  # noqa: F811
    if suite.make is not None:
        app = suite.make(tmp_path)
    else:
        app = write_app(tmp_path / "app", suite.source, *suite.classes, config=suite.config, settings=suite.settings)
        with open(app / "wrangler.toml", "a") as file:
            file.write(suite.more)
    with running_here(app, tmp_path / "data", variables=[f"UP:{upstream}"]) as node:
        node.mode = "inline"
        known = {"name": "", "node": node, "flask_node": node, "upstream": upstream}
        for name in suite.names.split():
            function = getattr(suite.module, name)
            known["name"] = name.replace("_", "-")
            for arguments in calls_of(function, known):
                if "client" in arguments:
                    with test_http.Client(node.port) as arguments["client"]:
                        function(**arguments)
                else:
                    function(**arguments)


# checks that start nodes of their own

OWN = {
    test_storage_cli: "test_a_bad_dump_changes_nothing test_usage test_check_finds_damage"
    " test_a_dump_without_a_count_is_one_of_version_1 test_a_dump_passes_over_the_damaged_and_names_them",
    test_migrations: "test_bad_migrations test_order  test_wrong_declarations test_what_is_declared_is_read",
    test_bindings: "test_key_values test_expiry test_rate_limits test_assets_and_secrets test_periods_of_rate_limits",
    test_kept_upstreams: "test_it_is_dialled_again test_giving_up_and_closing_while_it_is_away test_what_cannot_be_kept"
    " test_many_messages_keep_their_order",
}


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in OWN.items() for name in names.split()],
    ids=lambda each: each if isinstance(each, str) else each.__name__.rpartition("test_")[2],
)
def test_with_nodes_of_its_own(module, name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "running", running_instead)
    if hasattr(module, "roost"):
        monkeypatch.setattr(module, "roost", command_instead)
    function = getattr(module, name)
    for number, arguments in enumerate(calls_of(function, {})):
        folder = tmp_path / str(number)
        folder.mkdir()
        if "tmp_path" in arguments:
            arguments["tmp_path"] = folder
        if module is test_storage_cli and "app" in arguments:
            arguments["app"] = write_app(folder / "app", module.SOURCE, "Box", settings="[hibernation]\nidle_s = 0.2\n")
        if module is test_bindings and "app" in arguments:
            arguments["app"] = test_bindings.make(folder / "app")
        with contextlib.ExitStack() as stack:
            if "upstream" in arguments:
                arguments["upstream"] = server = test_kept_upstreams.Upstream()
                stack.callback(server.stop)
            if "node" in arguments:
                app = write_app(folder / "app", module.SOURCE, "Feed", settings="[hibernation]\nidle_s = 0.1\n")
                arguments["node"] = stack.enter_context(running_here(app, folder / "data"))
            function(**arguments)


def test_the_admin_side(tmp_path):
    app = write_app(tmp_path / "app", test_admin.SOURCE)
    with running_here(app, tmp_path / "data", admin=("127.0.0.1", 0)) as node:
        line = wait_for(lambda: next((line for line in node.log if "admin on" in line), None))
        node.admin = int(re.search(r":(\d+), its token", line)[1])
        node.token = (tmp_path / "data" / "admin-token").read_text().strip()
        for name in (
            "test_nothing_without_the_token",
            "test_by_no_other_name",
            "test_methods_and_paths",
            "test_a_bad_body",
        ):
            function = getattr(test_admin, name)
            for arguments in calls_of(function, {"node": node}):
                function(**arguments)
