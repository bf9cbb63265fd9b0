"""What a schema cannot say: apps, roles, services and paths that do not fit together."""

from __future__ import annotations

import pytest
import tomli

from bootagent.config import resolve
from bootagent.config.document import Document
from bootagent.errors import ConfigError

BASE = """
[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://deploys/web.json" }
"""
ROLE = """
[roles.web]
apps = ["web"]
"""
API = """
[apps.api]
deploy_to = "/srv/api"
source = { type = "s3", url = "s3://deploys/api.json" }
"""


def told(text: str) -> list[tuple[str, str]]:
    """(key, sentence) of every problem of a document."""
    try:
        resolve.validate(Document(tomli.loads(text), {}, "config.toml"))
    except ConfigError as error:
        return [(problem.key, problem.sentence) for problem in error.problems]
    return []


def test_the_base_is_good() -> None:
    assert told(BASE + ROLE) == []
    assert told(BASE + API + ROLE) == []


# --- roles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "found"),
    [
        ('apps = ["wev"]', [("roles.x.apps[0]", "'wev' is no app; did you mean 'web'? known: api, web")]),
        ('apps = ["zzz"]', [("roles.x.apps[0]", "'zzz' is no app; known: api, web")]),
        ('apps = ["web", "api", "web"]', [("roles.x.apps[2]", "'web' is named twice")]),
        (
            'apps = ["web", "api"]\nservices = ["puma"]',
            [("roles.x.services[0]", "'puma' of which app? Write APP.puma: the role has several")],
        ),
        (
            'apps = "*"\nservices = ["puma"]',
            [("roles.x.services[0]", "'puma' of which app? Write APP.puma: the role has several")],
        ),
        (
            'apps = ["web"]\nservices = ["api.puma"]',
            [("roles.x.services[0]", "'api' is no app of this role; known: web")],
        ),
        (
            'apps = ["web", "api"]\nservices = ["web.puma", "wbe.puma"]',
            [("roles.x.services[1]", "'wbe' is no app of this role; did you mean 'web'? known: api, web")],
        ),
        ('apps = ["web"]\nservices = ["puma", "web.sidekiq"]', []),
        ('apps = ["web", "api"]\nservices = ["web.puma", "api.rackup"]', []),
        ('apps = "*"\nservices = ["api.rackup"]', []),
        ("apps = []", []),
    ],
)
def test_a_role_and_its_services(role: str, found: list[tuple[str, str]]) -> None:
    assert told(f"{BASE}{API}[roles.x]\n{role}") == found


def test_with_one_app_in_all_a_star_needs_no_app_name() -> None:
    assert told(f'{BASE}[roles.x]\napps = "*"\nservices = ["puma"]') == []


def test_rules_report_everything_at_once_too() -> None:
    found = told(
        BASE.replace("web.json", "{enviroment}.json")
        + 'linked_files = ["log/x", "log"]\n[roles.a]\napps = ["b", "c"]\n[roles.d]\napps = ["web"]\nservices = ["x.y"]'
    )
    assert [key for key, _ in found] == [
        "apps.web.source.url",
        "apps.web.linked_files[1]",
        "roles.a.apps[0]",
        "roles.a.apps[1]",
        "roles.d.services[0]",
    ]


# --- places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", ["/srv/web", "/srv/web/", "/srv/web/api", "/srv", "/srv//web", "/srv/./web", "//srv/web"]
)
def test_two_apps_cannot_share_a_directory_or_nest(other: str) -> None:
    ((key, sentence),) = told(BASE + API.replace("/srv/api", other) + ROLE)
    assert key == "apps.api.deploy_to"
    assert "collides with '/srv/web' of app 'web'" in sentence


@pytest.mark.parametrize("other", ["/srv/web2", "/srv/we", "/srv/.web"])
def test_neighbours_do_not_collide(other: str) -> None:
    assert told(BASE + API.replace("/srv/api", other) + ROLE) == []


@pytest.mark.parametrize("text", ["/", "//", "/."])
def test_an_app_cannot_live_at_the_root(text: str) -> None:
    assert [key for key, _ in told(BASE.replace("/srv/web", text) + ROLE)] == ["apps.web.deploy_to"]


@pytest.mark.parametrize(
    ("linked", "key"),
    [
        ('linked_files = ["a", "a"]', "apps.web.linked_files[1]"),
        ('linked_files = ["a"]\nlinked_dirs = ["a"]', "apps.web.linked_files[0]"),
        ('linked_files = ["log/production.log"]\nlinked_dirs = ["log"]', "apps.web.linked_files[0]"),
        ('linked_dirs = ["tmp", "tmp/pids"]', "apps.web.linked_dirs[1]"),
        ('linked_files = ["a", { path = "a/b", from = "/x" }]', "apps.web.linked_files[1]"),
    ],
)
def test_linked_paths_cannot_hide_one_another(linked: str, key: str) -> None:
    ((found, sentence),) = told(BASE + linked + ROLE)
    assert found == key
    assert "collides with" in sentence


def test_linked_neighbours_are_fine() -> None:
    assert told(BASE + 'linked_dirs = ["log", "logs", "tmp/pids", "tmp/cache"]\nlinked_files = ["tmp/x"]' + ROLE) == []


def test_the_origin_of_a_linked_file_does_not_climb() -> None:
    """The machine refuses such a path when it runs; better said by ``check``."""
    linked = 'linked_files = [{ path = "a", from = "/etc/app/../shadow" }]'
    assert [key for key, _ in told(BASE + linked + ROLE)] == ["apps.web.linked_files[0].from"]


# --- coordinates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{enviroment}", "{enviroment} is not known; did you mean 'environment'?; tags are written {tag:KEY}"),
        ("{team}", None),
        ("x{role}y{regoin}", "{regoin} is not known; did you mean 'region'?; tags are written {tag:KEY}"),
    ],
)
def test_a_misspelt_coordinate_is_told(text: str, sentence: str | None) -> None:
    ((key, found),) = told(BASE.replace("web.json", f"{text}.json") + ROLE)
    assert key == "apps.web.source.url"
    assert sentence in (None, found)
    assert "{tag:KEY}" in found


@pytest.mark.parametrize("text", ["{Environment}", "{tag:}", "{env"])
def test_a_brace_that_means_nothing_in_an_address_is_told(text: str) -> None:
    """Left as it stands it would name a key that cannot be meant: s3://deploys/{Environment}.json."""
    assert [key for key, _ in told(BASE.replace("web.json", f"{text}.json") + ROLE)] == ["apps.web.source.url"]


def test_every_place_that_is_filled_in_is_looked_at() -> None:
    found = told(
        """
        [apps.web]
        deploy_to = "/srv/{a}"
        source = { type = "s3", url = "s3://{b}/x.json" }
        linked_files = ["{literal}", { path = "x", from = "s3://{c}/x" }]
        [apps.web.services.s]
        command = ["{literal}"]
        env = { A = "{d}", B = "{{literal}}" }
        check = { http = "http://{e}/" }
        [apps.web.services.t]
        check = { tcp = "{f}:1" }
        [roles.web]
        apps = ["web"]
        """
    )
    assert {key: sentence.partition(" ")[0] for key, sentence in found} == {
        "apps.web.deploy_to": "{a}",
        "apps.web.source.url": "{b}",
        "apps.web.linked_files[1].from": "{c}",
        "apps.web.services.s.env.A": "{d}",
        "apps.web.services.s.check.http": "{e}",
        "apps.web.services.t.check.tcp": "{f}",
    }


# --- services ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "key", "words"),
    [
        ('check = { http = "http://x/", tcp = "x:1" }', "check", "http and tcp"),
        ('check = { http = "http://x/", tcp = "x:1", command = ["x"] }', "check", "http and tcp and command"),
        ('check = { tcp = "localhost:0" }', "check.tcp", "no port between 1 and 65535"),
        ('check = { tcp = "localhost:65536" }', "check.tcp", "no port between 1 and 65535"),
        ('env = { A = "x " }', "env.A", "blanks"),
        ('env = { A = "x\\t" }', "env.A", "blanks"),
        ('env = { A = " " }', "env.A", "blanks"),
        ('env = { A = "x\\u0000y" }', "env.A", "NUL"),
        ('env = { A = "x\\ny \\n " }', "env.A", "blanks"),
    ],
)
def test_a_service_that_cannot_be(service: str, key: str, words: str) -> None:
    ((found, sentence),) = told(f"{BASE}[apps.web.services.puma]\n{service}\n{ROLE}")
    assert found == f"apps.web.services.puma.{key}"
    assert words in sentence


@pytest.mark.parametrize(
    "service",
    [
        "",
        'check = { tcp = "[::1]:65535" }',
        'check = { http = "http://[::1]:8080/up?x=1" }',
        'env = { A = "", B = " x", C = "a\\nb\\n", D = "ä=\\"\'$x" }',
    ],
)
def test_a_service_that_can(service: str) -> None:
    assert told(f"{BASE}[apps.web.services.puma]\n{service}\n{ROLE}") == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://127.0.0.1:up/", "http://[::1/", "http://:80/"])
def test_an_http_check_that_can_never_be_asked_is_told(url: str) -> None:
    found = told(f'{BASE}[apps.web.services.puma]\ncheck = {{ http = "{url}" }}\n{ROLE}')
    assert [key for key, _ in found] == ["apps.web.services.puma.check.http"]


# --- what only a command has -------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ['directory = "api"', 'wrapper = ["nice"]', 'stop = ["bin/stop"]'])
def test_what_goes_with_a_command_is_refused_without_one(line: str) -> None:
    service = f"[apps.web.services.puma]\n{line}\n"
    ((key, sentence),) = told(BASE + service + ROLE)
    assert key == f"apps.web.services.puma.{line.split()[0]}"
    assert sentence.startswith("goes with a command")
    assert told(BASE + service + 'command = ["puma"]\n' + ROLE) == []


def test_a_wrapper_of_the_app_leaves_services_of_the_release_alone() -> None:
    assert told(BASE + 'wrapper = ["nice"]\n[apps.web.services.puma]\numask = "027"\nruntime = "asdf"\n' + ROLE) == []
