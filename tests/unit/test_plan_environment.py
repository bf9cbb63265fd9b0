"""What a lane does for the environment of its app's services."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bootagent import leaving, plan
from bootagent.config.model import App, EnvironmentTree, GitSource, NfsSource, Secret
from bootagent.environment.directories import Tree
from bootagent.environment.fetch import Asked
from bootagent.errors import BootagentError, MachineError
from bootagent.git_repository import Commit
from bootagent.hooks import Given
from bootagent.machine import Machine
from bootagent.plan import Known, Lane, Moment
from bootagent.release import Layout
from bootagent.roster import Roster
from bootagent.sources import InPlace, Revision
from bootagent.state import AppState
from bootagent.steps.copied_scripts import CopiedScripts
from bootagent.steps.environment_checkout import EnvironmentCheckout
from bootagent.steps.fetched_secrets import FetchedSecrets, ServiceSecrets
from bootagent.steps.prepared import Prepared
from bootagent.steps.services import Services
from tests.unit.test_plan import BOOT, NEW, NOW, PUMA, R1, R2, UNNAMED, WEB, config, good, remembered, revision

MOMENT = Moment(NOW, BOOT, "eu-west-1")
GIT = GitSource("https://git.example/env.git", "main", None, "/etc/ssh/ssh_known_hosts", submodules=False)
LAYERS = ("common", "staging")
IN_RELEASE = replace(WEB, environment=EnvironmentTree("config/env", None, LAYERS))
FROM_GIT = replace(WEB, environment=EnvironmentTree("", GIT, LAYERS))
SHA = "a" * 40


def lane(app: App, **known: object) -> Lane:
    found = Known(Layout(), revision("one"), AppState(app.deploy_to))
    return plan.make(config(app), {app.name: replace(found, **known)}, (), MOMENT).lanes[0]  # type: ignore[arg-type]


def hook(made: Lane) -> Prepared:
    step = made.steps["stage"][-1]
    assert isinstance(step, Prepared)
    return step


def roster(made: Lane) -> Roster:
    (step,) = made.steps["serve"]
    assert isinstance(step, Services)
    return step.roster


def test_an_app_without_either_has_no_step_for_them() -> None:
    made = lane(WEB)
    assert not [step for step in made.steps["stage"] if isinstance(step, FetchedSecrets | EnvironmentCheckout)]
    assert roster(made).environment is None and roster(made).specs[0].secrets is None


def test_a_tree_is_in_the_release_or_in_the_image() -> None:
    place = "/srv/web/current"
    wanted = Tree(place, "config/env", LAYERS, f"{place}/config/env", of_release=True)
    assert roster(lane(IN_RELEASE)).environment == wanted
    in_image = replace(WEB, environment=EnvironmentTree("/etc/env", None, LAYERS))
    assert roster(lane(in_image)).environment == Tree("/etc/env", ".", LAYERS, "/etc/env")


def test_a_tree_in_a_release_on_a_server_is_copied_first() -> None:
    source = NfsSource("nas", "/apps", "/apps", (), copy=False, path="current", within=60.0)
    app = replace(IN_RELEASE, source=source)
    made = lane(app, revision=Revision("nfs:x", "one", "nas", InPlace()))
    copy = CopiedScripts("/srv/web/current/config/env", "/run/bootagent/environment/web", "deploy", "web")
    assert copy in made.steps["stage"]
    found = roster(made).environment
    assert found is not None and (found.root, found.copied) == ("/run/bootagent/environment/web", True)


def test_a_tree_from_git_is_checked_out_before_the_hook() -> None:
    made = lane(FROM_GIT, environment=SHA)
    place = Tree("/var/lib/bootagent/environment/web/current", ".", LAYERS, GIT.url)
    commit = Commit(GIT.url, SHA, False, None, GIT.known_hosts, "eu-west-1")
    assert made.steps["stage"][-2] == EnvironmentCheckout("web", commit, place, WEB.limits.within)
    assert roster(made).environment == place
    assert lane(replace(FROM_GIT, prepare=None), environment=SHA).steps["stage"][-1] == made.steps["stage"][-2]
    assert (made.intent, made.degraded) == ("deploy", False)


def test_a_repository_that_does_not_answer_leaves_what_is_there() -> None:
    silent = MachineError("nobody answers")
    kept = lane(FROM_GIT, environment=silent, environment_present=SHA)
    assert (kept.intent, kept.degraded, kept.unread) == ("deploy", True, True)
    assert "nobody answers; the environment stays that of aaaaaaaaaaaa" in kept.reason
    assert not [step for step in kept.steps["stage"] if isinstance(step, EnvironmentCheckout)]
    first = lane(FROM_GIT, environment=silent)
    assert (first.intent, first.unread, first.reason) == ("nothing", True, "environment: nobody answers")


def test_secrets_are_fetched_before_the_hook_and_for_the_services_that_run() -> None:
    of_app = Secret(None, "ssm:/web/")
    puma = replace(PUMA, secrets=(of_app, Secret("KEY", "ssm:/key")))
    worker = replace(PUMA, name="worker", env=(), secrets=(of_app,))
    app = replace(FROM_GIT, services=(puma, worker), unnamed=replace(UNNAMED, secrets=(of_app,)))
    path, place = Asked(None, "ssm:/web/"), "/run/bootagent/secrets/web"
    asked = ServiceSecrets(f"{place}.puma", (path, Asked("KEY", "ssm:/key")), ("A",))
    others = ServiceSecrets(f"{place}.worker", (path,)), ServiceSecrets(place, (path,))
    made = lane(app, environment=SHA)
    assert made.steps["stage"][-2] == FetchedSecrets("web", (asked, *others), "eu-west-1")
    tree = roster(made).environment
    assert hook(made).given == Given("web", tree, place)
    assert [spec.secrets for spec in roster(made).specs] == [f"{place}.puma", f"{place}.worker"]

    # What the hooks have is that of the services that a release brings, be there one of them or not.
    made = lane(replace(app, only=("puma",)), environment=SHA)
    assert made.steps["stage"][-2] == FetchedSecrets("web", (asked, others[1]), "eu-west-1")
    made = lane(replace(app, only=("puma",), prepare=None), environment=SHA)
    assert made.steps["stage"][-1] == FetchedSecrets("web", (asked,), "eu-west-1")
    made = lane(replace(app, only=("puma",), prepare=None, stop=("bin/stop",)), environment=SHA)
    assert made.steps["stage"][-1] == FetchedSecrets("web", (asked, others[1]), "eu-west-1")


def test_the_hook_reads_the_tree_of_its_own_release() -> None:
    made = lane(IN_RELEASE)
    place = f"/srv/web/releases/{NEW}"
    tree = Tree(place, "config/env", LAYERS, f"{place}/config/env", of_release=True)
    assert hook(made).given == Given("web", tree, None)
    assert hook(lane(WEB)).given is None


def test_a_stop_hook_finds_it_again_without_a_configuration(tmp_path: Path) -> None:
    app = replace(IN_RELEASE, stop=("bin/stop",), unnamed=replace(UNNAMED, secrets=(Secret(None, "ssm:/web/"),)))
    noted = plan.leaving(config(app))
    tree = Tree("/srv/web/current", "config/env", LAYERS, "/srv/web/current/config/env", of_release=True)
    assert noted.hooks[0].given == Given("web", tree, "/run/bootagent/secrets/web")
    machine = Machine(tmp_path)
    leaving.save(machine, noted)
    assert leaving.load(machine) == noted
    leaving.save(machine, plan.leaving(config(replace(WEB, stop=("bin/stop",)))))
    found = leaving.load(machine)
    assert found is not None and found.hooks[0].given is None


def test_going_back_is_to_the_secrets_of_today_or_those_at_hand() -> None:
    app = replace(FROM_GIT, services=(replace(PUMA, secrets=(Secret(None, "ssm:/web/"),)),))
    state = remembered("b", r20261111120000=good("a"), r20261112120000=good("b"))
    known = Known(Layout(R2, releases=(R1, R2)), BootagentError("not looked at"), state, environment=SHA)
    back = plan.going_back.lane(config(app), app, known, R1, MOMENT)
    checkout, fetched = back.steps["stage"]
    assert isinstance(checkout, EnvironmentCheckout) and checkout.commit.sha == SHA
    assert isinstance(fetched, FetchedSecrets) and fetched.or_at_hand
    assert (back.intent, back.release, back.fallback) == ("rollback", R1, R2)
    silent = replace(known, environment=MachineError("nobody answers"), environment_present="b" * 40)
    back = plan.going_back.lane(config(app), app, silent, R1, MOMENT)
    assert back.degraded and "the environment stays that of bbbbbbbbbbbb" in back.reason
