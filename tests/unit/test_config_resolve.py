"""A document and an instance's tags become one configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tomli
from hypothesis import given

from bootagent.config import coordinates, document, quantities, resolve
from bootagent.config.document import Document
from bootagent.config.model import App, Check, Config, Limits, LinkedFile, Runit, S3Source, Service
from bootagent.errors import ConfigError

#: As design documents and the README promise it.
PROMISED = """
[tags]
role = "Role"                    # which tag names the role; these are the defaults
environment = "Environment"

[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://deploys/web/{environment}.json" }   # a pointer, or an archive
linked_files = ["config/database.yml"]
linked_dirs = ["log"]
keep_releases = 5

[apps.web.services.puma]         # or nothing here: config/service/* of the release
command = ["bundle", "exec", "puma"]
user = "deploy"
check = { http = "http://127.0.0.1:9292/up", within = "30s" }

[roles.web]
apps = ["web"]                   # services = [...] narrows it; apps = "*" is everything
"""

FACTS = {"region": "eu-west-1", "availability_zone": "eu-west-1a", "account_id": "123456789012"}
TAGS = {"Role": "web", "Environment": "staging"}


def valid(text: str) -> Document:
    return resolve.validate(Document(tomli.loads(text), {}, "config.toml"))


def resolved(text: str, tags: Mapping[str, str] = TAGS, facts: Mapping[str, str] = FACTS) -> Config:
    return resolve.resolve(valid(text), facts, tags)


def app(more: str = "", tags: Mapping[str, str] = TAGS, *, url: str = "s3://b/web.json", role: str = "") -> App:
    """The app of a small configuration with a few more lines."""
    text = f'[apps.web]\ndeploy_to = "/srv/web"\nsource = {{ type = "s3", url = "{url}" }}\n{more}\n'
    return resolved(f'{text}[roles.web]\napps = ["web"]\n{role}', tags).apps[0]


def refusals(text: str, tags: Mapping[str, str] = TAGS) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        resolved(text, tags)
    return [(problem.key, problem.sentence) for problem in caught.value.problems]


# --- the whole ---------------------------------------------------------------------------------------------------


def test_the_promised_smallest_configuration_means_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(PROMISED)
    loaded = resolve.validate(document.load(document.config_files(tmp_path / "config.toml")))
    assert resolve.required_tags(loaded, TAGS) == {"Role", "Environment"}
    assert resolve.resolve(loaded, {}, TAGS) == Config(
        role="web",
        environment="staging",
        apps=(
            App(
                name="web",
                deploy_to="/srv/web",
                user="deploy",
                group=None,
                source=S3Source("deploys", "web/staging.json", None),
                fallback=None,
                linked_files=(LinkedFile("config/database.yml", None),),
                linked_dirs=("log",),
                keep_releases=5,
                prepare=None,
                hooks_within=600.0,
                release_services="config/service",
                services=(
                    Service(
                        name="puma",
                        command=("bundle", "exec", "puma"),
                        user="deploy",
                        group=None,
                        env=(),
                        log="/var/log/bootagent/web.puma",
                        stable_for=2.0,
                        stop_within=10.0,
                        check=Check(http="http://127.0.0.1:9292/up", tcp=None, command=None, within=30.0),
                    ),
                ),
                unnamed=Service(
                    name="*",
                    command=None,
                    user="deploy",
                    group=None,
                    env=(),
                    log="/var/log/bootagent/web.*",
                    stable_for=2.0,
                    stop_within=10.0,
                    check=Check(None, None, None, 30.0),
                ),
                only=None,
                limits=Limits(unpacked=20 * 2**30, files=1_000_000, reserve=64 * 2**20, within=900.0),
            ),
        ),
        volumes=(),
        runit=Runit("/etc/service", "/etc/sv"),
    )


def test_resolving_leaves_the_document_as_it_was() -> None:
    loaded = valid(PROMISED)
    resolve.resolve(loaded, {}, TAGS)
    assert resolve.resolve(loaded, {}, {**TAGS, "Environment": "production"}).apps[0].source == S3Source(
        "deploys", "web/production.json", None
    )


def test_an_unknown_role_names_the_tag_and_what_was_meant() -> None:
    ((key, sentence),) = refusals(PROMISED, {**TAGS, "Role": "wep"})
    assert (key, sentence) == ("roles", "no role 'wep' (tag Role); did you mean 'web'? known: web")


def test_the_role_decides_which_apps() -> None:
    text = "".join(
        f'[apps.{name}]\ndeploy_to = "/srv/{name}"\nsource = {{ type = "s3", url = "s3://b/{name}.tar" }}\n'
        for name in ("web", "api", "job")
    )
    text += '[roles.web]\napps = ["job", "web"]\n[roles.all]\napps = "*"\n[roles.none]\napps = []\n'
    named = {role: [one.name for one in resolved(text, {"Role": role}).apps] for role in ("web", "all", "none")}
    assert named == {"web": ["job", "web"], "all": ["web", "api", "job"], "none": []}


def test_services_of_a_role_are_sorted_to_their_apps() -> None:
    text = "".join(
        f'[apps.{name}]\ndeploy_to = "/srv/{name}"\nsource = {{ type = "s3", url = "s3://b/{name}.tar" }}\n'
        for name in ("web", "api")
    )
    text += '[roles.web]\napps = "*"\nservices = ["web.puma", "api.rackup", "web.clock"]\n'
    assert [one.only for one in resolved(text).apps] == [("puma", "clock"), ("rackup",)]


@pytest.mark.parametrize(
    ("role", "only"),
    [("", None), ('services = ["puma", "web.clock"]', ("puma", "clock")), ("services = []", ())],
)
def test_services_narrow(role: str, only: tuple[str, ...] | None) -> None:
    assert app(role=role).only == only


def test_other_tag_names_and_runit_places() -> None:
    text = PROMISED.replace('"Role"', '"What"').replace('"Environment"', '"Where"')
    found = resolved(f'{text}[runit]\nservice_dir = "/service"', {"What": "web", "Where": "qa"})
    assert (found.role, found.environment) == ("web", "qa")
    assert found.runit == Runit("/service", "/etc/sv")


def test_without_an_environment_there_is_none() -> None:
    text = PROMISED.replace("{environment}", "x")
    assert resolved(text, {"Role": "web"}).environment is None


# --- users -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "user"),
    [
        ("", "nobody"),
        ('user = "root"', "root"),
        ('[apps.web.services.a]\nuser = "deploy"', "deploy"),
        ('[apps.web.services.a]\nuser = "deploy"\n[apps.web.services.b]', "deploy"),
        ('[apps.web.services.a]\nuser = "deploy"\n[apps.web.services.b]\nuser = "deploy"', "deploy"),
        ('[apps.web.services.a]\nuser = "one"\n[apps.web.services.b]\nuser = "two"', "nobody"),
        ('user = "app"\n[apps.web.services.a]\nuser = "deploy"', "app"),
    ],
)
def test_who_owns_the_releases(more: str, user: str) -> None:
    assert app(more).user == user


def test_a_service_runs_as_the_apps_user_and_group_unless_it_says_otherwise() -> None:
    found = app(
        """
        user = "app"
        group = "web"
        [apps.web.services.same]
        [apps.web.services.group]
        group = "other"
        [apps.web.services.user]
        user = "deploy"
        [apps.web.services.both]
        user = "deploy"
        group = "staff"
        """
    )
    assert {one.name: (one.user, one.group) for one in (*found.services, found.unnamed)} == {
        "same": ("app", "web"),
        "group": ("app", "other"),
        "user": ("deploy", None),
        "both": ("deploy", "staff"),
        "*": ("app", "web"),
    }


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0.0), (2.5, 2.5), ("30s", 30.0), ("1.5m", 90.0), ("2h", 7200.0), ("250ms", 0.25), ("0s", 0.0), (7, 7.0)],
)
def test_durations(value: float | str, seconds: float) -> None:
    assert quantities.seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        *((0, 0), (7, 7), ("7B", 7), ("1kB", 1000), ("1KB", 1000), ("3MB", 3 * 10**6), ("20GB", 20 * 10**9)),
        *(("1TB", 10**12), ("1MiB", 2**20), ("1.5GiB", 3 * 2**29), ("1TiB", 2**40)),
    ],
)
def test_sizes(value: int | str, size: int) -> None:
    assert quantities.size(value) == size


def test_a_trailing_slash_of_deploy_to_goes() -> None:
    assert resolved(PROMISED.replace("/srv/web", "/srv/web/")).apps[0].deploy_to == "/srv/web"


def test_environment_variables_are_sorted_so_that_their_order_changes_nothing() -> None:
    one = app('[apps.web.services.a]\nenv = { B = "1", A = "2" }')
    two = app('[apps.web.services.a]\nenv = { A = "2", B = "1" }')
    assert one == two
    assert one.services[0].env == (("A", "2"), ("B", "1"))


# --- tags that are waited for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "required"),
    [
        ({}, {"Role", "Always"}),
        ({"Role": "typo"}, {"Role", "Always"}),
        ({"Role": "web"}, {"Role", "Always", "Stage", "Team", "Colour", "Host"}),
        ({"Role": "api"}, {"Role", "Always"}),
    ],
)
def test_which_tags_are_required_follows_from_the_role(tags: dict[str, str], required: set[str]) -> None:
    found = valid(
        """
        [tags]
        environment = "Stage"
        required = ["Always"]
        [apps.web]
        deploy_to = "/srv/web"
        source = { type = "s3", url = "s3://{tag:Team}-{region}/{environment}.json" }
        [apps.web.services.a]
        env = { COLOUR = "{tag:Colour}", LITERAL = "{{tag:No}}" }
        check = { tcp = "{tag:Host}:1" }
        [apps.api]
        deploy_to = "/srv/api"
        source = { type = "s3", url = "s3://b/api.json" }
        [roles.web]
        apps = ["web", "api"]
        [roles.api]
        apps = ["api"]
        """
    )
    assert resolve.required_tags(found, tags) == required


def test_defaults_for_tags_and_the_time_to_wait() -> None:
    found = valid(PROMISED.replace("[tags]", '[tags]\nwithin = "90s"\ndefaults = { Environment = "dev" }'))
    assert resolve.default_tags(found) == {"Environment": "dev"}
    assert resolve.metadata_within(found) == 90.0


# --- coordinates -------------------------------------------------------------------------------------------------

VALUES = {"environment": "staging", "tag:Team": "blue", "region": "eu-west-1", "tag:Say": "hello, world "}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{environment}", "staging"),
        ("{environment}{tag:Team}/{region}", "stagingblue/eu-west-1"),
        ("{{environment}}", "{environment}"),
        ("{{{environment}}}", "{staging}"),
        ("{{", "{"),
        ("}}", "}"),
        ("{{}}", "{}"),
    ],
)
def test_filling_in(text: str, filled: str) -> None:
    assert coordinates.fill(text, VALUES, strict=True) == filled


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    values = {"tag:A": "{tag:B}", "tag:B": "secret"}
    assert coordinates.fill("{tag:A}", values, strict=False) == "{tag:B}"


@pytest.mark.parametrize("value", ["", None])
def test_a_value_that_is_not_there_is_named(value: str | None) -> None:
    values = {} if value is None else {"tag:Team": value}
    with pytest.raises(ValueError, match=re.escape("{tag:Team} has no value: the instance has no tag 'Team'")):
        coordinates.fill("{tag:Team}", values, strict=False)


HOSTILE = [
    *("../x", "..", ".", "...", "a/b", "/etc", "a b", " a", "a ", "a\nb", "a\n", "\na", "a\tb", "a\0b", "x" * 129),
    *("a?b", "a#b", "a%2fb", "a\\b", "ä", "a;b", "$(a)", "`a`", "a{b", "'", '"', "*", "~", "&", "a\u2028b", "a\x85b"),
]


@pytest.mark.parametrize("value", HOSTILE)
def test_what_goes_into_a_path_or_address_is_one_plain_word(value: str) -> None:
    with pytest.raises(ValueError, match="one plain word"):
        coordinates.fill("/srv/{tag:Team}", {"tag:Team": value}, strict=True)


@pytest.mark.parametrize("value", ["a", "A-b_c.d", "1.2.3", "a@b", "a+b=c", "x" * 128, "a:b", "..a", "a..", "-"])
def test_plain_words(value: str) -> None:
    assert coordinates.fill("/srv/{tag:Team}", {"tag:Team": value}, strict=True) == f"/srv/{value}"


@pytest.mark.parametrize("value", ["a\nb", "a\n", "a\0", "\x1b[0m", "\x7f", "\r", "x" * 257])
def test_what_goes_into_a_variable_is_one_line(value: str) -> None:
    with pytest.raises(ValueError, match="one line of text"):
        coordinates.fill("{tag:Team}", {"tag:Team": value}, strict=False)


@pytest.mark.parametrize("value", ["a b", "../x", "ä ö", "$(a) `b` 'c' \"d\"", "{{", "{environment}", "x" * 256])
def test_any_line_goes_into_a_variable(value: str) -> None:
    assert coordinates.fill("<{tag:Team}>", {"tag:Team": value}, strict=False) == f"<{value}>"


@given(st.text(max_size=40))
def test_a_filled_path_never_leaves_its_directory(value: str) -> None:
    try:
        filled = coordinates.fill("/srv/{tag:T}/app", {"tag:T": value}, strict=True)
    except ValueError:
        return
    assert len(Path(filled).parts) == 4
    assert ".." not in Path(filled).parts
    assert filled.isprintable()


@pytest.mark.parametrize(
    ("key", "more", "url"),
    [
        ("apps.web.source.url", "", "s3://b/{tag:Team}.json"),
        ("apps.web.linked_files[0].from", 'linked_files = [{ path = "a", from = "/etc/{tag:Team}" }]', "s3://b/w.json"),
        ("apps.web.services.a.check.http", '[apps.web.services.a]\ncheck = { http = "http://{tag:Team}/" }', "s3://b/w.json"),
        ("apps.web.services.a.check.tcp", '[apps.web.services.a]\ncheck = { tcp = "{tag:Team}:1" }', "s3://b/w.json"),
    ],
)  # fmt: skip
def test_each_address_is_strict_and_an_error_names_its_key(key: str, more: str, url: str) -> None:
    for value in ("../x", "a b", "a\nb"):
        with pytest.raises(ConfigError) as caught:
            app(more, {**TAGS, "Team": value}, url=url)
        ((found, sentence),) = [(problem.key, problem.sentence) for problem in caught.value.problems]
        assert found == key
        assert repr(value) in sentence


def test_deploy_to_is_strict_as_well() -> None:
    text = PROMISED.replace("/srv/web", "/srv/{tag:Team}/web")
    assert resolved(text, {**TAGS, "Team": "blue"}).apps[0].deploy_to == "/srv/blue/web"
    ((key, _),) = refusals(text, {**TAGS, "Team": "../etc"})
    assert key == "apps.web.deploy_to"


def test_a_variable_takes_a_line_but_not_two() -> None:
    more = '[apps.web.services.a]\nenv = { TEAM = "the {tag:Team}" }'
    assert app(more, {**TAGS, "Team": "blue & gold"}).services[0].env == (("TEAM", "the blue & gold"),)
    with pytest.raises(ConfigError, match="one line of text"):
        app(more, {**TAGS, "Team": "blue\nLD_PRELOAD=/x"})


def test_a_variable_that_ends_in_blanks_by_its_tag_is_refused_like_one_that_is_written_so() -> None:
    with pytest.raises(ConfigError, match="chpst"):
        app('[apps.web.services.a]\nenv = { TEAM = "{tag:Team}" }', {**TAGS, "Team": "blue "})


@pytest.mark.parametrize("value", ["{x}", "{environment}", "{{x}}", "}{", '{"a": {"b": 1}}'])
def test_braces_that_a_tag_brings_are_plain_text(value: str) -> None:
    found = app('[apps.web.services.a]\nenv = { TEAM = "<{tag:Team}>" }', {**TAGS, "Team": value})
    assert found.services[0].env == (("TEAM", f"<{value}>"),)


def test_doubled_braces_come_out_single_wherever_values_are_filled_in() -> None:
    found = app(
        """
        linked_files = [{ path = "a", from = "/etc/{{b}}" }]
        [apps.web.services.a]
        env = { JSON = '{{"a": {{"b": "{environment}"}}}}', NAME = "{{x}}" }
        check = { http = "http://127.0.0.1/{{c}}" }
        """,
        url="s3://b/{{web}}.json",
    )
    assert isinstance(found.source, S3Source) and found.source.key == "{web}.json"
    assert found.linked_files[0].origin == "/etc/{b}"
    assert found.services[0].env == (("JSON", '{"a": {"b": "staging"}}'), ("NAME", "{x}"))
    assert found.services[0].check.http == "http://127.0.0.1/{c}"


def test_all_missing_values_are_told_at_once() -> None:
    text = PROMISED.replace("/srv/web", "/srv/{tag:Team}").replace(
        "[roles", '[apps.web.services.b]\nenv = { A = "{tag:B}" }\n[roles'
    )
    assert [key for key, _ in refusals(text, {"Role": "web"})] == [
        "apps.web.deploy_to",
        "apps.web.source.url",
        "apps.web.services.b.env.A",
    ]  # fmt: skip


def test_two_apps_whose_directories_meet_on_this_instance_are_refused() -> None:
    text = """
        [apps.web]
        deploy_to = "/srv/{environment}"
        source = { type = "s3", url = "s3://b/web.json" }
        [apps.api]
        deploy_to = "/srv/staging"
        source = { type = "s3", url = "s3://b/api.json" }
        [roles.web]
        apps = "*"
        """
    assert {one.deploy_to for one in resolved(text, {**TAGS, "Environment": "qa"}).apps} == {"/srv/qa", "/srv/staging"}
    ((key, sentence),) = refusals(text)
    assert key == "apps.api.deploy_to"
    assert "collides" in sentence


def test_facts_are_coordinates_too() -> None:
    found = app(url="s3://b-{region}/{role}/{account_id}/{availability_zone}.json")
    assert isinstance(found.source, S3Source)
    assert (found.source.bucket, found.source.key) == ("b-eu-west-1", "web/123456789012/eu-west-1a.json")


def test_a_tag_cannot_pose_as_a_coordinate() -> None:
    found = app(url="s3://{region}/{role}.json", tags={**TAGS, "region": "evil", "role": "evil", "tag:x": "evil"})
    assert isinstance(found.source, S3Source)
    assert (found.source.bucket, found.source.key) == ("eu-west-1", "web.json")


def test_the_items_of_a_list_are_filled_in() -> None:
    found = app(
        """
        secrets = ["ssm:/{environment}/", { name = "A", from = "ssm:/{role}/A" }]
        environment = { layers = ["common", "{environment}"] }
        """
    )
    assert [secret.origin for secret in found.unnamed.secrets] == ["ssm:/staging/", "ssm:/web/A"]
    assert found.environment is not None and found.environment.layers == ("common", "staging")


def test_coordinates_are_filled_in_in_lists_of_balancers() -> None:
    found = resolved(
        PROMISED + '[roles.web.traffic]\ntarget_groups = ["{role}-front", { group = "{role}-api", port = 8080 }]\n'
        'load_balancers = ["{role}"]\n'
    )
    assert found.traffic is not None
    assert [(one.group, one.port) for one in found.traffic.target_groups] == [("web-front", None), ("web-api", 8080)]
    assert found.traffic.load_balancers == ("web",)
