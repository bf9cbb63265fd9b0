"""What an instance runs by its mode, in which order, and what of it the tables say."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import tomli

from bootagent.config import resolve
from bootagent.config.document import Document
from bootagent.config.model import (
    App,
    Cgroup,
    Config,
    ElasticIp,
    EnvironmentTree,
    GitSource,
    ImageSource,
    Lifecycle,
    ProcessLimits,
    Secret,
    TargetGroup,
    Telling,
    Traffic,
)
from bootagent.errors import ConfigError

#: One image: two databases that are in it, an app with two components, and one that brings its own services.
IMAGE = """
[apps.db]
deploy_to = "/var/lib/databases"
source = { type = "image", copy = false }
[apps.db.services.postgres]
command = ["postgres"]
[apps.db.services.redis]
command = ["redis-server"]

[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://b/web/{environment}.json" }
[apps.web.services.server]
command = ["puma"]
after = ["db.postgres", "db.redis"]
[apps.web.services.worker]
command = ["sidekiq"]
env = { QUEUE = "{tag:Queue}" }
after = ["server", "db.redis"]

[apps.docs]
deploy_to = "/srv/docs"
source = { type = "image", path = "/opt/docs" }
after = ["web"]
"""
MODES = """
[modes.review]
apps = "*"
[modes.production]
apps = ["web", "docs"]
narrowed_by = "Service"
[modes.staging]
"""
ROLES = """
[roles.web]
apps = ["web", "db"]
services = ["web.server", "web.worker", "db.redis"]
[roles.docs]
apps = ["docs"]
"""
ALL = IMAGE + MODES + ROLES
QUEUE = {"Queue": "mail"}


def valid(text: str) -> Document:
    return resolve.validate(Document(tomli.loads(text), {}, "config.toml"))


def resolved(tags: Mapping[str, str], text: str = ALL) -> Config:
    return resolve.resolve(valid(text), {}, tags)


def running(tags: Mapping[str, str], text: str = ALL) -> dict[str, tuple[str, ...] | None]:
    """The apps that run, each with what it is narrowed to."""
    return {app.name: app.only for app in resolved(tags, text).apps}


def refusal(tags: Mapping[str, str], text: str = ALL) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(tags, text)
    (problem,) = caught.value.problems
    return f"{problem.key}: {problem.sentence}"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        valid(text)
    return [f"{problem.key}: {problem.sentence}" for problem in caught.value.problems]


def app(tags: Mapping[str, str], name: str, text: str = ALL) -> App:
    return next(one for one in resolved(tags, text).apps if one.name == name)


def production(*services: str, **more: str) -> dict[str, str]:
    return {"Environment": "production", "Service": " ".join(services), **QUEUE, **more}


# --- which -------------------------------------------------------------------------------------------------------


def test_review_runs_everything_and_needs_no_role() -> None:
    found = resolved({"Environment": "review", **QUEUE})
    assert {one.name: one.only for one in found.apps} == {"db": None, "web": None, "docs": None}
    assert (found.mode, found.role, found.environment) == ("review", "review", "review")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["web.server"], {"web": ("server",)}),
        (["server"], {"web": ("server",)}),
        (["web"], {"web": None}),
        (["docs"], {"docs": None}),
        (["web.server", "docs"], {"web": ("server",), "docs": None}),
        (["worker", "server"], {"web": ("worker", "server")}),
        (["server", "web.server"], {"web": ("server",)}),
        (["server", "web"], {"web": None}),
        (["docs.site"], {"docs": ("site",)}),  # what the release brings is seen once it is there
        (["web.cron", "server"], {"web": ("cron", "server")}),  # beside those configured, too
    ],
)
def test_a_tag_narrows_a_mode(words: list[str], expected: dict[str, tuple[str, ...] | None]) -> None:
    assert running(production(*words)) == expected


def test_without_apps_of_its_own_a_mode_has_the_roles() -> None:
    tags = {"Environment": "staging", "Role": "web", **QUEUE}
    assert running(tags) == {"web": ("server", "worker"), "db": ("redis",)}
    assert (resolved(tags).mode, resolved(tags).role) == ("staging", "web")
    assert running({**tags, "Role": "docs"}) == {"docs": None}


def test_a_tag_narrows_what_the_role_has_and_adds_nothing_to_it() -> None:
    text = ALL.replace("[modes.staging]", '[modes.staging]\nnarrowed_by = "Service"')
    tags = {"Environment": "staging", "Role": "web", **QUEUE}
    assert running({**tags, "Service": "db"}, text) == {"db": ("redis",)}
    assert running({**tags, "Service": "server"}, text) == {"web": ("server",)}
    assert "'db.postgres', which is no service or app of this mode" in refusal({**tags, "Service": "db.postgres"}, text)


def test_a_mode_has_a_tag_of_its_own_if_the_configuration_says_so() -> None:
    text = '[tags]\nmode = "Mode"\n' + ALL
    found = resolved({"Mode": "review", "Environment": "eu", **QUEUE}, text)
    assert (found.mode, found.environment) == ("review", "eu")
    assert found.apps[1].source.__str__() == "s3://b/web/eu.json"


def test_without_modes_the_role_says_it_all() -> None:
    found = resolved({"Role": "web", "Environment": "anything", **QUEUE}, IMAGE + ROLES)
    assert (found.mode, found.role, [one.name for one in found.apps]) == (None, "web", ["web", "db"])


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"Environment": "canary"}, "modes: no mode 'canary' (tag Environment); known: production, review, staging"),
        (
            {"Environment": "reviews"},
            "modes: no mode 'reviews' (tag Environment); did you mean 'review'? known: production, review, staging",
        ),
        ({}, "modes: no mode: the instance has no tag Environment; known: production, review, staging"),
        ({"Environment": "staging"}, "roles: no role: the instance has no tag Role; known: docs, web"),
        ({"Environment": "staging", "Role": "x"}, "roles: no role 'x' (tag Role); known: docs, web"),
        ({"Environment": "review", "Role": "x"}, "roles: no role 'x' (tag Role); known: docs, web"),
        (
            production("db.postgres"),
            "modes.production.narrowed_by: tag Service names 'db.postgres', which is no service or app of this mode; "
            "known: docs, web, web.server, web.worker",
        ),
        (
            production("web.server", "sever"),
            "modes.production.narrowed_by: tag Service names 'sever', which is no service or app of this mode; "
            "did you mean 'web.server'? known: docs, web, web.server, web.worker",
        ),
        (
            production("web."),
            "modes.production.narrowed_by: tag Service names 'web.', which is no service or app of this mode; "
            "did you mean 'web'? known: docs, web, web.server, web.worker",
        ),
        (
            production(" "),
            "modes.production.narrowed_by: tag Service names no service; known: docs, web, web.server, web.worker",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(tags: dict[str, str], said: str) -> None:
    assert refusal(tags) == said


def test_a_service_that_two_apps_have_is_to_be_named_in_full() -> None:
    text = ALL.replace("[apps.docs]", '[apps.api]\ndeploy_to = "/srv/api"\nsource = { type = "image" }\n[apps.docs]')
    text = text.replace("[apps.docs]", '[apps.api.services.server]\ncommand = ["x"]\n[apps.docs]')
    text = text.replace('["web", "docs"]', '["web", "api"]')
    assert "names 'server', which several apps have: write web.server or api.server" in refusal(
        production("server"), text
    )
    assert running(production("api.server"), text) == {"api": ("server",)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[modes.x]\napps = ["wbe"]', "modes.x.apps[0]: 'wbe' is no app; did you mean 'web'? known: db, docs, web"),
        (
            '[lifecycle]\nsustained = "1h"\ngive_up_after = "10m"',
            "lifecycle.sustained: '1h' is not less than give_up_after, '10m': no launch would be continued",
        ),
        ("[lifecycle]\nsustained = 600", "lifecycle.sustained: 600 is not less than give_up_after, '10m'"),
        ('[lifecycle]\ngive_up_after = "49h"', "lifecycle.give_up_after: '49h' is longer than any hook waits"),
        ('[lifecycle]\nlaunching = "x"\nterminating = "x"', "lifecycle.terminating: 'x' is the hook at launch"),
        ('[apps.web.hooks]\nwithin = "0s"', "apps.web.hooks.within: '0s' leaves no time at all"),
        ("[roles.web.traffic]\nwithin = 0", "roles.web.traffic.within: 0 leaves no time at all"),
        ('[modes.x]\napps = ["web", "web"]', "modes.x.apps[1]: 'web' is named twice"),
        ('[lifecycle]\ndiagnosis = "s3://b/{plate}"', "lifecycle.diagnosis: {plate} is not known; known:"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_whatever_the_tags(more: str, said: str) -> None:
    (found,) = problems(f"{ALL}\n{more}")
    assert found.startswith(said)


def test_without_roles_each_mode_says_what_to_run() -> None:
    assert running({"Environment": "review", **QUEUE}, IMAGE + '[modes.review]\napps = "*"\n').keys() == {
        "db",
        "web",
        "docs",
    }
    for modes in (MODES, "", "[modes]\n"):
        (said,) = problems(IMAGE + modes)
        assert said.startswith("roles: is missing: it says which apps an instance runs"), modes


# --- what is waited for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "awaited"),
    [
        ({}, {"Environment"}),
        ({"Environment": "canary"}, {"Environment"}),  # refused as it is, not waited for
        ({"Environment": "review"}, {"Environment", "Queue"}),
        ({"Environment": "staging"}, {"Environment", "Role"}),
        ({"Environment": "staging", "Role": "web"}, {"Environment", "Role", "Queue"}),
        ({"Environment": "production"}, {"Environment", "Service"}),
        ({"Environment": "production", "Service": "worker"}, {"Environment", "Service", "Queue"}),
        ({"Environment": "production", "Service": "docs"}, {"Environment", "Service"}),
        ({"Environment": "production", "Service": "web.server"}, {"Environment", "Service"}),
        ({"Environment": "production", "Service": "unknown"}, {"Environment", "Service"}),
    ],
)
def test_late_tags_are_waited_for_and_no_others(tags: dict[str, str], awaited: set[str]) -> None:
    """What only a part interpolates that does not run here would never come."""
    assert resolve.required_tags(valid(ALL), tags) == awaited


def test_what_does_not_run_here_needs_no_values() -> None:
    assert running({"Environment": "production", "Service": "server"}) == {"web": ("server",)}
    text = ALL.replace('env = { QUEUE = "{tag:Queue}" }', 'check = { http = "http://127.0.0.1:{tag:Port}/" }')
    assert running({"Environment": "production", "Service": "server"}, text) == {"web": ("server",)}
    said = refusal({"Environment": "production", "Service": "worker"}, text)
    assert said.startswith("apps.web.services.worker.check.http: {tag:Port} has no value")


def test_of_a_role_that_is_told_the_volumes_and_the_traffic_count() -> None:
    role = (
        '[roles.db]\napps = []\nvolumes.data = { mountpoint = "/data", tags = { Name = "{tag:Disk}" } }\n'
        'traffic = { target_groups = ["{tag:Group}"] }\n'
    )
    tags = {"Environment": "review", "Role": "db"}
    assert resolve.required_tags(valid(ALL + role), tags) == {"Environment", "Queue", "Disk", "Group"}


# --- order -------------------------------------------------------------------------------------------------------


def test_what_comes_before_is_named_in_full_and_apps_follow_their_services() -> None:
    review = {"Environment": "review", **QUEUE}
    web = app(review, "web")
    assert [service.after for service in web.services] == [("db.postgres", "db.redis"), ("web.server", "db.redis")]
    assert (web.after, app(review, "docs").after, app(review, "db").after) == (("db",), ("web",), ())


def test_what_does_not_run_here_is_not_waited_for() -> None:
    web = app(production("web"), "web")
    assert web.after == ()
    assert {service.name: service.after for service in web.services} == {"server": (), "worker": ("web.server",)}
    worker = app(production("worker"), "web")
    assert {service.name: service.after for service in worker.services}["worker"] == ()
    assert app(production("docs"), "docs").after == ()
    staging = app({"Environment": "staging", "Role": "web", **QUEUE}, "web")
    assert {service.name: service.after for service in staging.services}["server"] == ("db.redis",)


def looped(**after: str) -> str:
    parts = [
        f'[apps.{name}]\ndeploy_to = "/srv/{name}"\nsource = {{ type = "image" }}\nafter = {value}\n'
        for name, value in after.items()
    ]
    return "".join(parts) + "[roles]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (looped(a='["b"]', b='["a"]'), "goes in a circle"),
        (looped(a='["b"]', b='["c"]', c='["a"]'), "goes in a circle"),
        (looped(a='["a"]'), "apps.a.after: goes in a circle: a after a"),
        (looped(a='["bb"]', b="[]"), "apps.a.after[0]: 'bb' is no app; did you mean"),
        (looped(a="[]").replace("[roles]", '[apps.a.services.x]\nafter = ["x"]\n[roles]'), "a.x after a.x"),
        (looped(a="[]").replace("[roles]", '[apps.a.services.x]\nafter = ["b.x"]\n[roles]'), "'b' is no app"),
        (
            looped(a="[]", b='["a"]').replace("[roles]", '[apps.a.services.x]\nafter = ["b.y"]\n[roles]'),
            "goes in a circle",
        ),
    ],
)
def test_circles_and_what_is_not_there_are_refused_whatever_runs(text: str, said: str) -> None:
    (found,) = problems(text)
    assert said in found


def test_a_circle_is_told_as_it_goes() -> None:
    (found,) = problems(looped(a='["b"]', b='["c"]', c='["a"]'))
    words = found.partition("circle: ")[2].split(" after ")
    assert words[0] == words[-1] and set(words) == {"a", "b", "c"}
    assert {"a": "b", "b": "c", "c": "a"}[words[0]] == words[1], "each after the one it names"


# --- the tables --------------------------------------------------------------------------------------------------

TABLES = """
[apps.web]
deploy_to = "/srv/web"
user = "deploy"
source = { type = "image" }
secrets = ["ssm:/{environment}/web/"]
runtime = "mise"
wrapper = ["nice"]
hooks = { stop = ["bin/leave"], within = "1m" }
environment = { url = "git@host:env.git", ref = "{tag:Ref}", path = "tree", layers = ["all", "{environment}"] }
[apps.web.services.server]
command = ["puma"]
secrets = [{ name = "KEY", from = "secretsmanager:{environment}/web#key" }]
directory = "app"
umask = "027"
limits = { memory = "1GiB", open_files = 100, core = 0 }
cgroup = { memory = "2GiB", cpus = 1.5, processes = 50 }
reload = "USR2"
stop = ["bin/drain"]
[apps.web.services.plain]
command = ["x"]
runtime = "none"
wrapper = ["bundle", "exec"]
[roles.web]
apps = ["web"]
[roles.web.traffic]
elastic_ip = { tags = { Pool = "{tag:Team}" } }
target_groups = ["web-{environment}", { group = "other", port = 8080 }]
load_balancers = ["old-{environment}"]
drain_within = "20s"
[lifecycle]
launching = "up"
diagnosis = "s3://b/{instance_id}"
[tell]
console = false
metrics = "/m/x.prom"
"""
TABLE_TAGS = {"Role": "web", "Environment": "eu", "Team": "green", "Ref": "release/1"}


@pytest.fixture
def tables() -> Config:
    return resolve.resolve(valid(TABLES), {"instance_id": "i-1"}, TABLE_TAGS)


def test_the_tables_of_a_service(tables: Config) -> None:
    server, plain = tables.apps[0].services
    assert server.secrets == (
        Secret(None, "ssm:/eu/web/"),
        Secret("KEY", "secretsmanager:eu/web#key"),
    )
    assert (server.runtime, server.wrapper, plain.runtime, plain.wrapper) == (
        "mise",
        ("nice",),
        "none",
        ("bundle", "exec"),
    )
    assert (server.directory, server.umask, server.reload, server.stop) == ("app", "027", "USR2", ("bin/drain",))
    assert server.limits == ProcessLimits(memory=2**30, open_files=100, core=0)
    assert server.cgroup == Cgroup(2 * 2**30, 1.5, 50)
    assert (plain.limits, plain.cgroup, plain.secrets) == (ProcessLimits(), None, (Secret(None, "ssm:/eu/web/"),))
    assert tables.apps[0].unnamed.secrets == plain.secrets


def test_the_environment_of_an_app(tables: Config) -> None:
    git = GitSource("git@host:env.git", "release/1", None, "/etc/ssh/ssh_known_hosts", submodules=False)
    assert tables.apps[0].environment == EnvironmentTree("tree", git, ("all", "eu"))
    assert (tables.apps[0].stop, tables.apps[0].hooks_within) == (("bin/leave",), 60.0)
    text = TABLES.replace(
        'environment = { url = "git@host:env.git", ref = "{tag:Ref}", path = "tree"', "environment = {"
    )
    simple = resolve.resolve(valid(text.replace("{, layers", "{ layers")), {"instance_id": "i-1"}, TABLE_TAGS)
    assert simple.apps[0].environment == EnvironmentTree("config/env", None, ("all", "eu"))


def test_traffic_lifecycle_and_telling(tables: Config) -> None:
    assert tables.traffic == Traffic(
        ElasticIp(None, (("Pool", "green"),)),
        (TargetGroup("web-eu", None), TargetGroup("other", 8080)),
        ("old-eu",),
        300.0,
        20.0,
    )
    assert tables.lifecycle == Lifecycle("up", None, 30.0, 600.0, "abandon", "s3://b/i-1")
    assert tables.telling == Telling(console=False, tags=False, metrics="/m/x.prom")
    assert resolve.telling(valid(ALL)) == Telling(console=True, tags=False, metrics=None)


@pytest.mark.parametrize("value", ["a/b", "..", "x y"])
def test_a_tag_cannot_lead_a_path_elsewhere(value: str) -> None:
    text = TABLES.replace('ref = "{tag:Ref}"', 'ref = "main"')
    with pytest.raises(ConfigError) as caught:
        resolve.resolve(valid(text), {"instance_id": "i-1"}, {**TABLE_TAGS, "Environment": value})
    keys = {problem.key for problem in caught.value.problems}
    assert {"apps.web.secrets[0]", "apps.web.environment.layers[1]"} <= keys
    assert "apps.web.services.server.secrets[0].from" in keys


# --- what runs in the image itself -------------------------------------------------------------------------------


def test_a_source_that_is_not_copied_runs_in_deploy_to() -> None:
    db = app({"Environment": "review", **QUEUE}, "db")
    assert db.source == ImageSource(None, copy=False)
    assert (db.in_place, db.current) == (True, "/var/lib/databases")
    docs = app({"Environment": "review", **QUEUE}, "docs")
    assert (docs.in_place, docs.current) == (False, "/srv/docs/current")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("source = { type = 'image', copy = false, path = '/opt' }", "source.path"),
        ("source = { type = 'image', copy = false }\nlinked_files = ['x']", "linked_files"),
        ("source = { type = 'image', copy = false }\nlinked_dirs = ['x']", "linked_dirs"),
        ("source = { type = 'image', copy = false }\nhooks = { prepare = ['x'] }", "hooks.prepare"),
    ],
)
def test_where_nothing_is_copied_nothing_is_linked_or_prepared(change: str, key: str) -> None:
    (found,) = problems(f"[apps.db]\ndeploy_to = '/db'\n{change}\n[roles]\n")
    assert found.startswith(f"apps.db.{key}: ")
