"""What a lane does for the environment of its app's services."""

from __future__ import annotations

from dataclasses import replace

from bootagent import plan
from bootagent.config.model import App, EnvironmentTree, GitSource, NfsSource, Secret
from bootagent.environment.directories import Tree
from bootagent.environment.fetch import Asked
from bootagent.errors import MachineError
from bootagent.git_repository import Commit
from bootagent.plan import Known, Lane, Moment
from bootagent.release import Layout
from bootagent.sources import InPlace, Revision
from bootagent.state import AppState
from bootagent.steps.copied_scripts import CopiedScripts
from bootagent.steps.environment_checkout import EnvironmentCheckout
from bootagent.steps.fetched_secrets import FetchedSecrets, ServiceSecrets
from bootagent.steps.services import Services
from tests.unit.test_plan import BOOT, NOW, PUMA, UNNAMED, WEB, config, revision

MOMENT = Moment(NOW, BOOT, "eu-west-1")
GIT = GitSource("https://git.example/env.git", "main", None, "/etc/ssh/ssh_known_hosts", submodules=False)
LAYERS = ("common", "staging")
IN_RELEASE = replace(WEB, environment=EnvironmentTree("config/env", None, LAYERS))
FROM_GIT = replace(WEB, environment=EnvironmentTree("", GIT, LAYERS))
SHA = "a" * 40


def lane(app: App, **known: object) -> Lane:
    found = Known(Layout(), revision("one"), AppState(app.deploy_to))
    return plan.make(config(app), {app.name: replace(found, **known)}, (), MOMENT).lanes[0]  # type: ignore[arg-type]


def services(made: Lane) -> Services:
    (step,) = made.steps["serve"]
    assert isinstance(step, Services)
    return step


def test_an_app_without_either_has_no_step_for_them() -> None:
    made = lane(WEB)
    assert not [step for step in made.steps["stage"] if isinstance(step, FetchedSecrets | EnvironmentCheckout)]
    assert services(made).environment is None and services(made).specs[0].secrets is None


def test_a_tree_is_in_the_release_or_in_the_image() -> None:
    place = "/srv/web/current"
    wanted = Tree(place, "config/env", LAYERS, f"{place}/config/env", of_release=True)
    assert services(lane(IN_RELEASE)).environment == wanted
    in_image = replace(WEB, environment=EnvironmentTree("/etc/env", None, LAYERS))
    assert services(lane(in_image)).environment == Tree("/etc/env", ".", LAYERS, "/etc/env")


def test_a_tree_in_a_release_on_a_server_is_copied_first() -> None:
    source = NfsSource("nas", "/apps", "/apps", (), copy=False, path="current", within=60.0)
    app = replace(IN_RELEASE, source=source)
    made = lane(app, revision=Revision("nfs:x", "one", "nas", InPlace()))
    copy = CopiedScripts("/srv/web/current/config/env", "/run/bootagent/environment/web", "deploy", "web")
    assert copy in made.steps["stage"]
    found = services(made).environment
    assert found is not None and (found.root, found.copied) == ("/run/bootagent/environment/web", True)


def test_a_tree_from_git_is_checked_out_last_of_what_is_staged() -> None:
    made = lane(FROM_GIT, environment=SHA)
    place = Tree("/var/lib/bootagent/environment/web/current", ".", LAYERS, GIT.url)
    commit = Commit(GIT.url, SHA, False, None, GIT.known_hosts, "eu-west-1")
    assert made.steps["stage"][-1] == EnvironmentCheckout("web", commit, place, WEB.limits.within)
    assert services(made).environment == place
    assert (made.intent, made.degraded) == ("deploy", False)


def test_a_repository_that_does_not_answer_leaves_what_is_there() -> None:
    silent = MachineError("nobody answers")
    kept = lane(FROM_GIT, environment=silent, environment_present=SHA)
    assert (kept.intent, kept.degraded, kept.unread) == ("deploy", True, True)
    assert "nobody answers; the environment stays that of aaaaaaaaaaaa" in kept.reason
    assert not [step for step in kept.steps["stage"] if isinstance(step, EnvironmentCheckout)]
    first = lane(FROM_GIT, environment=silent)
    assert (first.intent, first.unread, first.reason) == ("nothing", True, "environment: nobody answers")


def test_secrets_are_fetched_last_of_all_and_for_the_services_that_run() -> None:
    of_app = Secret(None, "ssm:/web/")
    puma = replace(PUMA, secrets=(of_app, Secret("KEY", "ssm:/key")))
    worker = replace(PUMA, name="worker", env=(), secrets=(of_app,))
    app = replace(FROM_GIT, services=(puma, worker), unnamed=replace(UNNAMED, secrets=(of_app,)))
    path, place = Asked(None, "ssm:/web/"), "/run/bootagent/secrets/web"
    asked = ServiceSecrets(f"{place}.puma", (path, Asked("KEY", "ssm:/key")), ("A",))
    others = ServiceSecrets(f"{place}.worker", (path,)), ServiceSecrets(place, (path,))
    made = lane(app, environment=SHA)
    assert made.steps["stage"][-1] == FetchedSecrets("web", (asked, *others), "eu-west-1")
    assert [spec.secrets for spec in services(made).specs] == [f"{place}.puma", f"{place}.worker"]

    made = lane(replace(app, only=("puma",)), environment=SHA)
    assert made.steps["stage"][-1] == FetchedSecrets("web", (asked,), "eu-west-1")
