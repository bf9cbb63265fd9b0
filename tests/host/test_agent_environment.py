"""Services' environment: nested directories, and secrets that are seen by the service alone."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bootagent.sandbox.supervisor import Supervisor
from tests.conftest import Agent, processes_of
from tests.host.git_server import Repository
from tests.host.stage import App, Stage

VALUE, OTHER, TOKEN = "s3cr3t-value-of-the-database", "0ther-secret", "t0ken-of-the-worker"
SERVICE = """
[apps.web.services.{name}]
command = ["sleep", "1000"]
stable_for = "300ms"
check = {{ within = "6s" }}
{more}
"""
TREE = """
[apps.web.environment]
{where}
layers = ["common", "{{environment}}"]
"""
#: common < staging < web < web/one; what is two's is not one's.
FILES = {
    "common/A": "common\n",
    "common/B": "common  \t\nsecond line\n",
    "common/LINES": "one\0 two\0",
    "common/GONE": "common",
    "common/DATABASE_URL": "not this one",
    "common/FIXED": "not this one",
    "common/HOME": "/nowhere",
    "staging/B": "staging",
    "staging/C": "staging",
    "production/C": "production",
    "web/C": "web",
    "web/EMPTY": "\n",
    "web/GONE": "",
    "web/one/ONE": "1",
    "web/two/TWO": "2",
}


def environ(web: App, name: str) -> dict[str, str]:
    """What a service's process was given."""
    found = Path(f"/proc/{web.pid(name)}/environ").read_bytes().decode().split("\0")
    return dict(item.split("=", 1) for item in found if item)


def configured(web: App, where: str = 'path = "config/env"', one: str = "", two: str = "", app: str = "") -> str:
    services = SERVICE.format(name="one", more=one) + SERVICE.format(name="two", more=two)
    return web.config(extra=app, service=TREE.format(where=where) + services)


def put(stage: Stage, **parameters: str) -> None:
    for name, value in parameters.items():
        stage.cloud.api.ssm(stage.cloud.region).put_parameter(
            Name="/" + name.replace("__", "/"), Value=value, Type="SecureString", Overwrite=True
        )


def said_anywhere(stage: Stage, *secrets: str) -> list[str]:
    """Where a secret is written below the machine's root, other than in its own place; or in an argument list."""
    found = []
    for path in stage.root.rglob("*"):
        if path.is_file() and "run/bootagent/secrets/" not in str(path) and "run/bootagent/env/" not in str(path):
            content = path.read_bytes()
            found += [str(path) for secret in secrets if secret.encode() in content]
    for pid in processes_of(stage.root):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        found += [words.decode() for secret in secrets if secret.encode() in words]
    return found


def test_directories_and_secrets(stage: Stage, web: App, agent: Agent) -> None:
    put(stage, web__DATABASE_URL=VALUE, web__deep__FIXED="nor this", web__LONG=f"{OTHER}\n second\n", token=TOKEN)
    stage.cloud.api.secretsmanager(stage.cloud.region).create_secret(
        Name="web/keys", SecretString=json.dumps({"KEY": OTHER, "NUMBER": 1.10, "odd": [1]})
    )
    one = 'env = { FIXED = "by the configuration" }\nsecrets = ["secretsmanager:web/keys#KEY"]'
    two = 'secrets = [{ name = "TOKEN", from = "ssm:/token" }]'
    stage.configure(configured(web, one=one, two=two, app='secrets = ["ssm:/web/"]'))
    web.publish("one", {**web.tree("one"), **{f"config/env/{name}": text for name, text in FILES.items()}})

    planned = agent("plan")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    seen, other = environ(web, "one"), environ(web, "two")
    wanted = {
        "A": "common",
        "B": "staging",
        "C": "web",
        "EMPTY": "",
        "HOME": "/nowhere",
        "LINES": "one\n two\n",
        "ONE": "1",
        "DATABASE_URL": VALUE,
        "FIXED": "by the configuration",
        "LONG": f"{OTHER}\n second\n",
        "KEY": OTHER,
    }
    assert {name: seen.get(name) for name in wanted} == wanted
    assert not {"GONE", "TWO", "TOKEN", "AWS_ACCESS_KEY_ID"} & set(seen)
    assert (other["TWO"], other["TOKEN"], other["FIXED"]) == ("2", TOKEN, "nor this")
    assert not {"ONE", "KEY"} & set(other)

    secrets = stage.root / "run/bootagent/secrets"
    assert sorted(path.name for path in secrets.iterdir()) == ["web", "web.one", "web.two"]
    for path in (secrets, *secrets.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    # Each origin is asked once, whoever wants it.
    actions = [call.action for call in stage.cloud.calls if call.service in ("ssm", "secretsmanager")]
    assert sorted(actions) == ["GetParameters", "GetParametersByPath", "GetSecretValue"]

    pids = web.pid("one"), web.pid("two")
    assert agent("reconfigure").code == 0
    assert (web.pid("one"), web.pid("two")) == pids

    put(stage, token="another-token")
    ran = agent("reconfigure", "--json")
    assert ran.code == 0, ran.stderr
    assert web.pid("one") == pids[0] and web.pid("two") != pids[1]
    assert environ(web, "two")["TOKEN"] == "another-token"

    seen_text = [*planned, *ran, *agent("plan"), *agent("plan", "--json"), *agent("status", "--json")]
    seen_text += [*agent("history", "--json"), *agent("timeline")]
    for secret in (VALUE, OTHER, TOKEN, "another-token"):
        assert not [text for text in seen_text if secret in str(text)]
    assert said_anywhere(stage, VALUE, OTHER, TOKEN, "another-token") == []


HOOK = """#!/bin/sh
echo "$C $DATABASE_URL"
printf %s "$DATABASE_URL" | sha256sum > {seen}
echo "$B $C $ONE $HOME $BOOTAGENT_APP $PATH" >> {seen}
exit {code}
"""


def hook(seen: str, code: int = 0) -> str:
    return HOOK.format(seen=seen, code=code)


def test_hooks_see_what_services_see_and_tell_no_secret(stage: Stage, web: App, agent: Agent) -> None:
    put(stage, web__DATABASE_URL=VALUE)
    files = {f"config/env/{name}": text for name, text in FILES.items()}
    files["config/env/web/BOOTAGENT_APP"] = "of another name"
    hooks = 'hooks = { prepare = ["bin/prepare"], stop = ["bin/stop"] }\nsecrets = ["ssm:/web/"]'
    # One service alone: the hook has the app's secrets all the same.
    stage.configure(configured(web, app=hooks), roles='[roles.web]\napps = ["web"]\nservices = ["one"]\n')
    scripts = {"bin/prepare": hook("prepared"), "bin/stop": hook("stopped")}
    web.publish("one", {**web.tree("one"), **files, **scripts})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    release = web.deploy_to / "releases" / web.current
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    wanted = [f"{hashlib.sha256(VALUE.encode()).hexdigest()}  -", f"staging web  /nowhere web {path}"]
    assert (release / "prepared").read_text().splitlines() == wanted
    (printed,) = (stage.root / "var/lib/bootagent/prepared").iterdir()
    assert printed.read_text() == "web (secret)\n"

    # One that fails tells what it said, but for that.
    web.publish("two", {**web.tree("two"), **files, **scripts, "bin/prepare": hook("prepared", code=3)})
    failed = agent("reconfigure")
    assert failed.code == 3 and "web (secret)" in failed.stderr, failed.stderr
    stopped = agent("stop")
    assert stopped.code == 0, stopped.stderr
    assert (release / "stopped").read_text().splitlines() == wanted, stopped.stderr
    assert VALUE not in "".join(map(str, (*failed, *stopped, *agent("history", "--json"), *agent("status", "--json"))))
    assert said_anywhere(stage, VALUE) == []


def test_the_last_words_of_a_service_are_told_without_its_secrets(stage: Stage, web: App, agent: Agent) -> None:
    put(stage, web__DATABASE_URL=VALUE)
    service = 'command = ["sh", "-c", "echo no way to $DATABASE_URL; exit 1"]\nstable_for = "300ms"\n'
    service = f'[apps.web.services.one]\n{service}check = {{ within = "2s" }}\n'
    stage.configure(web.config(extra='secrets = ["ssm:/web/DATABASE_URL"]', service=service))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1 and "no way to (secret)" in ran.stderr, ran.stderr
    assert VALUE not in "".join(map(str, (*ran, *agent("history", "--json"), *agent("status", "--json"))))
    # Its own log is its own.
    assert {Path(path).parent.name for path in said_anywhere(stage, VALUE)} <= {"web.one"}

    # A check may say what it knows, too, also while it is waited for.
    check = 'command = ["sh", "-c", "echo no way to $DATABASE_URL; exit 1"], within = "6s"'
    service = f'[apps.web.services.one]\ncommand = ["sleep", "1000"]\nstable_for = "300ms"\ncheck = {{ {check} }}\n'
    stage.configure(web.config(extra='secrets = ["ssm:/web/DATABASE_URL"]', service=service))
    ran = agent("reconfigure")
    assert ran.code == 1 and "no way to (secret)" in ran.stderr, ran.stderr
    assert "waiting for web.one to be healthy" in ran.stderr
    assert VALUE not in ran.stderr
    assert {Path(path).parent.name for path in said_anywhere(stage, VALUE)} <= {"web.one"}


def test_going_back_brings_the_secrets_of_today_or_keeps_those_at_hand(stage: Stage, web: App, agent: Agent) -> None:
    put(stage, web__DATABASE_URL=VALUE)
    stage.configure(configured(web, app='secrets = ["ssm:/web/"]'))
    for version in ("one", "two"):
        web.publish(version, {**web.tree(version), "config/env/common/A": version})
        stage.cloud.api.fail("ssm", "GetParametersByPath", code="InternalServerError", status=400)  # which may pass
        assert agent("reconfigure").code == 0
    second = web.current
    put(stage, web__DATABASE_URL=OTHER)
    ran = agent("rollback")
    assert ran.code == 0, ran.stderr
    assert (environ(web, "one")["A"], environ(web, "one")["DATABASE_URL"]) == ("one", OTHER)

    put(stage, web__DATABASE_URL=TOKEN)
    stage.cloud.api.fail("ssm", "GetParametersByPath", code="AccessDeniedException", status=400)
    ran = agent("rollback", second)
    assert ran.code == 0, ran.stderr
    assert "the secrets of web are those from before" in ran.stderr and "AccessDeniedException" in ran.stderr
    assert (environ(web, "one")["A"], environ(web, "one")["DATABASE_URL"]) == ("two", OTHER)


def test_a_plan_asks_for_no_secret(stage: Stage, web: App, agent: Agent) -> None:
    def steps() -> dict[str, str]:
        stage.cloud.api.forget_calls()
        ran = agent("plan", "--json")
        assert ran.code == 0, ran.stderr
        assert not [call for call in stage.cloud.calls if call.service in ("ssm", "secretsmanager")]
        (found,) = [one["steps"] for one in json.loads(ran.stdout) if one["app"] == "web"]
        return {one["step"].split()[0]: one["verdict"] for one in found}

    put(stage, web__DATABASE_URL=VALUE)
    stage.configure(configured(web, app='secrets = ["ssm:/web/"]'))
    web.publish("one", {**web.tree("one"), "config/env/common/A": "1"})
    assert steps()["fetch"] == "would check"
    assert agent("reconfigure").code == 0
    found = steps()
    assert (found["fetch"], found["start"]) == ("would check", "is so")
    (stage.root / "run/bootagent/secrets").rename(stage.root / "gone")
    found = steps()
    assert (found["fetch"], found["start"]) == ("would do", "would check")

    # In the warm pool nothing would serve.
    launching = '[lifecycle]\nlaunching = "ready"\n'
    stage.configure(configured(web, app='secrets = ["ssm:/web/"]') + launching)
    stage.cloud.metadata.put("meta-data/autoscaling/target-lifecycle-state", "Warmed:Running")
    assert "start" not in steps()
    ran = agent("plan")
    assert "not serving: the warm pool has it" in ran.stdout and "stop the services of web" in ran.stdout, ran.stdout


def test_a_secret_that_is_denied_leaves_the_old_release_serving(
    stage: Stage, web: App, agent: Agent, runsvdir: Supervisor
) -> None:
    put(stage, web__DATABASE_URL=VALUE, web__TOKEN=TOKEN)
    files = {f"config/env/{name}": text for name, text in FILES.items()}
    stage.configure(configured(web, app='secrets = ["ssm:/web/DATABASE_URL"]'))
    web.publish("one", {**web.tree("one"), **files})
    assert agent("reconfigure").code == 0
    pid, release = web.pid("one"), web.current

    # A new release and a new secret; then neither.
    for more in ('secrets = ["ssm:/web/DATABASE_URL", "ssm:/web/TOKEN"]', 'secrets = ["ssm:/web/DATABASE_URL"]'):
        stage.configure(configured(web, app=more))
        web.publish("two", {**web.tree("two"), **files})
        stage.cloud.api.fail("ssm", "GetParameters", code="AccessDeniedException", status=400)
        ran = agent("reconfigure")
        assert ran.code == 3, ran.stderr
        assert "AccessDeniedException" in ran.stderr and "[request " in ran.stderr, ran.stderr
        assert "allow ssm:GetParameters to the instance's role" in ran.stderr
        assert (web.current, web.pid("one")) == (release, pid)
    # One service gets one of its own, which is refused.
    stage.configure(configured(web, app='secrets = ["ssm:/web/DATABASE_URL"]', two='secrets = ["ssm:/web/NONE"]'))
    ran = agent("reconfigure")
    assert ran.code == 3 and "there is no parameter /web/NONE" in ran.stderr, ran.stderr
    assert web.pid("one") == pid

    # At a reboot the directories are gone: nothing starts until the agent has fetched them.
    stage.configure(configured(web, app='secrets = ["ssm:/web/DATABASE_URL"]'))
    assert agent("reconfigure").code == 0
    runsvdir.stop()
    for left in ("secrets", "env"):
        (stage.root / "run/bootagent" / left).rename(stage.root / f"gone-{left}")
    runsvdir.start()
    assert agent("run", "--once").code == 0
    assert environ(web, "one")["DATABASE_URL"] == VALUE

    # And when nobody wants them any more, they go.
    stage.configure(configured(web))
    assert agent("reconfigure").code == 0
    assert "DATABASE_URL" in FILES["common/DATABASE_URL"] or environ(web, "one")["DATABASE_URL"] == "not this one"
    assert list((stage.root / "run/bootagent/secrets").iterdir()) == []


def test_an_environment_from_git(stage: Stage, web: App, agent: Agent, tmp_path: Path) -> None:
    repository = Repository(stage.root / "srv/git/env.git", tmp_path / "work", None)
    sha = repository.commit(dict(FILES))
    stage.configure(configured(web, where='url = "file:///srv/git/env.git"\nref = "main"'))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    seen = environ(web, "one")
    assert (seen["B"], seen["C"], seen["ONE"]) == ("staging", "web", "1")
    place = stage.root / "var/lib/bootagent/environment/web"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700 and (place / "current").readlink().name == sha

    # One service's directory changes, and that service alone is restarted.
    pids = web.pid("one"), web.pid("two")
    repository.commit({"web/two/TWO": "changed"})
    assert agent("reconfigure").code == 0
    assert environ(web, "two")["TWO"] == "changed"
    assert web.pid("one") == pids[0] and web.pid("two") != pids[1]
    assert len([entry for entry in place.iterdir() if len(entry.name) == 40]) == 1

    # What can be no variable is not switched to.
    repository.commit({"web/A=B": "x"})
    ran = agent("reconfigure")
    assert ran.code == 3 and "A=B" in ran.stderr, ran.stderr
    repository.commit({"web/A=B": None})

    # A repository that does not answer leaves what is there.
    repository.origin.rename(stage.root / "srv/git/away.git")
    ran = agent("reconfigure")
    assert ran.code == 3 and "the environment stays that of" in ran.stderr, ran.stderr
    assert environ(web, "two")["TWO"] == "changed"

    # Nor does a denial of its key, which is told with all that AWS said.
    stage.configure(configured(web, where='url = "git@127.0.0.1:env.git"\nref = "main"\nkey = "ssm:/git/key"'))
    stage.cloud.api.fail("ssm", "GetParameter", code="AccessDeniedException", status=400, times=2)
    web.publish("two")
    for command in ("reconfigure", "rollback"):
        assert agent(command).code == 3
        [failure] = stage.state()["last_run"]["failures"]
        assert (failure["code"], failure["iam_action"]) == ("AccessDeniedException", "ssm:GetParameter")
        assert failure["request_id"]


def test_a_tree_that_is_not_there(stage: Stage, web: App, agent: Agent) -> None:
    stage.configure(configured(web, where='path = "/etc/environments"'))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1 and "/etc/environments" in ran.stderr and "does not exist" in ran.stderr, ran.stderr
    (stage.root / "etc/environments").mkdir(parents=True)
    assert agent("reconfigure").code == 0
    assert "A" not in environ(web, "one")


@pytest.mark.parametrize("bad", ["config/env/common/A=B", "config/env/web"])
def test_a_release_whose_tree_is_no_tree_is_bad(stage: Stage, web: App, agent: Agent, bad: str) -> None:
    stage.configure(configured(web))
    web.publish("one", {**web.tree("one"), "config/env/common/A": "1"})
    assert agent("reconfigure").code == 0
    pid = web.pid("one")
    web.publish("two", {**web.tree("two"), "config/env/common/B": "2", bad: "x"})
    ran = agent("reconfigure")
    assert ran.code == 3 and bad.rpartition("/")[2] in ran.stderr, ran.stderr
    assert web.pid("one") and pid


def test_what_a_service_sees_is_told_with_where_it_comes_from(
    stage: Stage, web: App, agent: Agent, tmp_path: Path
) -> None:
    put(stage, web__DATABASE_URL=VALUE, web__FIXED=OTHER)
    one = 'env = { FIXED = "by the configuration" }'
    app = 'secrets = ["ssm:/web/", { name = "TOKEN", from = "ssm:/web/FIXED" }]'
    stage.configure(configured(web, one=one, app=app))
    run = "#!/bin/sh\nexec sleep 1000\n"
    files = {f"config/env/{name}": text for name, text in FILES.items()}
    web.publish("one", {**web.tree("one"), **files, "config/service/own/run": run})
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr

    told = {one["name"]: one for one in json.loads(agent("env", "one", "--json").stdout)}
    seen = environ(web, "one")
    assert {name for name, one in told.items() if one["value"] is not None or one["secret"]} == {*seen} - {
        "PWD",
        "OLDPWD",
    }
    assert not [name for name, one in told.items() if one["value"] not in (None, seen.get(name))]
    tree = "/srv/web/current/config/env"
    assert {name: told[name]["origin"] for name in ("LANG", "USER", "B", "C", "ONE", "FIXED")} == {
        "LANG": "minimal",
        "USER": "login",
        "B": f"{tree}/staging",
        "C": f"{tree}/web",
        "ONE": f"{tree}/web/one",
        "FIXED": "configuration",
    }
    assert told["GONE"] == {"name": "GONE", "value": None, "origin": f"{tree}/web", "secret": False}
    assert told["TOKEN"] == {"name": "TOKEN", "value": None, "origin": "ssm:/web/FIXED", "secret": True}
    assert told["DATABASE_URL"]["origin"] == "ssm:/web/DATABASE_URL"

    # Nothing is fetched for it, so that what has not been is known by its origin.
    (stage.root / "run/bootagent/secrets").rename(stage.root / "gone")
    stage.cloud.api.forget_calls()
    shown = agent("env", "web.own").stdout
    assert not [call for call in stage.cloud.calls if call.service == "ssm"]
    assert VALUE not in shown and OTHER not in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["TOKEN", "(secret)", "ssm:/web/FIXED"] in rows and ["GONE", "(unset)", f"{tree}/web"] in rows
    assert ["(more)", "(secret,", "not", "fetched", "yet)", "ssm:/web/"] in rows

    ran = agent("env", "three")
    assert ran.code == 2 and "it has web.one, web.own, web.two" in ran.stderr


def test_a_dump_becomes_a_directory_and_comes_back(tmp_path: Path) -> None:
    def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "bootagent", *words]
        return subprocess.run(argv, input=given, capture_output=True, text=True, check=False, cwd=tmp_path)

    heroku = "A='it'\\''s'\nB='two\nlines'\nC=\nD='  $x'\n"
    assert run("env-import", "-", "web", given=heroku).returncode == 0
    assert run("env-export", "web").stdout == "A=\"it's\"\nB='two\nlines'\nC=''\nD='  $x'\n"
    exported = run("env-export", "web", "--json").stdout
    assert json.loads(exported) == {"A": "it's", "B": "two\nlines", "C": "", "D": "  $x"}
    (tmp_path / "dump.json").write_text(exported)
    assert run("env-import", "dump.json", "again").returncode == 0
    assert run("env-export", "again", "--json").stdout == exported
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "again").iterdir()} == {0o600}

    refused = run("env-import", "-", "third", given=f"A=1\nB='{VALUE} '\n")
    assert refused.returncode == 1 and "'B' of standard input" in refused.stderr and VALUE not in refused.stderr
    assert not (tmp_path / "third").exists()
