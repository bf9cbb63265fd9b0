"""The command line: what it takes, prints and returns."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bootagent import __version__, cli, state
from bootagent.cli import common
from bootagent.machine import Machine
from bootagent.state import LastRun, State

GOOD = """
[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://deploys/web.json" }
[apps.api]
deploy_to = "/srv/api"
source = { type = "s3", url = "s3://deploys/api.json" }
[roles.web]
apps = ["web"]
[roles.all]
apps = "*"
"""

#: What each command's help must have told somebody who reads nothing else.
COMMANDS = {
    "run": "configure this instance at boot, then stay",
    "stop": "take all services down gracefully",
    "reconfigure": "without a reboot",
    "rollback": "the release before the current one",
    "plan": "change nothing",
    "status": "how the last run ended",
    "history": "list the runs",
    "timeline": "where the last run's seconds went",
    "env": "what a service finds in its environment",
    "env-import": "into a directory for chpst -e",
    "env-export": "that a shell reads too",
    "facts": "what this instance knows about itself",
    "check": "everything that is wrong",
    "keys": "defaults and meanings",
    "schema": "JSON Schema",
    "publish": "pointer last",
    "snapshot": "a mounted volume",
    "gc": "left over",
    "user-data": "gives an instance its role",
    "sandbox": "simulated cloud",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "etc/bootagent/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(GOOD)
    return path


def exits(*words: str) -> int:
    """The exit code of a command line that argparse ends."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def words_of(text: str) -> str:
    return " ".join(text.split())


# --- help --------------------------------------------------------------------------------------------------------


def test_every_command_there_is_has_its_place_in_these_tests() -> None:
    (commands,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert set(commands.choices) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_how_it_ends(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(command, "--help") == 0
    text = words_of(capsys.readouterr().out)
    assert COMMANDS[command].lower() in text.lower()
    assert "0 done, 1 failed, 2 usage or configuration, 3 degraded (an old release serves), 75 try later" in text


def test_the_help_lists_every_command_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--help") == 0
    text = words_of(capsys.readouterr().out).lower()
    for command, said in COMMANDS.items():
        assert command in text
        assert said.lower() in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--version") == 0
    assert capsys.readouterr().out == f"bootagent {__version__}\n"


# --- usage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no-such-command"],
        ["run", "--no-such-option"],
        ["run", "surplus"],
        ["run", "--lock-wait", "soon"],
        ["run", "--lock-wait", "-1"],
        ["status", "--wait", "nan"],
        ["status", "--wait", "inf"],
        ["facts", "--within", ""],
        ["run", "--log", "xml"],
        ["rollback", "20261111120000", "20261112120000"],
        ["publish"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_ends_in_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: bootagent" in shown.err


@pytest.mark.parametrize("tag", ["Role", "=web", "", "="])
@pytest.mark.parametrize("command", ["run", "reconfigure", "plan", "facts", "rollback"])
def test_a_tag_that_is_no_pair_is_named(
    command: str, tag: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--root", str(tmp_path), "--tag", tag]) == 2
    assert capsys.readouterr().err == f"bootagent: {tag!r} has not the form --tag KEY=VALUE\n"
    assert not (tmp_path / "var").exists()


def test_a_tags_value_may_hold_an_equals_sign() -> None:
    options = cli._parser().parse_args(["run", "--tag", "A=b=c", "--tag", "D=e", "--tag", "F="])
    assert common.tags_of(options) == {"A": "b=c", "D": "e", "F": ""}


# --- check -------------------------------------------------------------------------------------------------------


def test_check_says_what_is_good(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{config}: good; apps web, api; roles all, web\n"


def test_check_reads_conf_d_and_names_it(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = config.parent / "conf.d/more.toml"
    more.parent.mkdir()
    more.write_text('[roles.more]\napps = ["api"]')
    assert cli.main(["check", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{config}, {more}: good; apps web, api; roles all, more, web\n"


def test_check_tells_everything_wrong_a_line_each(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(GOOD.replace("[roles.web]", "keep_relases = 3\n[roles.wbe]\nsrvices = []") + "[tag]\n")
    assert cli.main(["check", str(config)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        f"bootagent: {config}: apps.api.keep_relases: is not a known key; did you mean 'keep_releases'?",
        f"bootagent: {config}: roles.wbe.srvices: is not a known key; did you mean 'services'?",
        f"bootagent: {config}: tag: is not a known key; did you mean 'tags'?",
    ]


def test_check_trusts_a_draft_but_not_what_is_in_place(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.chmod(0o666)
    assert cli.main(["check", str(config)]) == 0
    assert cli.main(["check", "--root", str(tmp_path)]) == 2
    assert cli.main(["check", "--config", str(config)]) == 2
    assert capsys.readouterr().err.count("refused: ") == 2


def test_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"bootagent: {tmp_path}/etc/bootagent/config.toml: no such file;")


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "bootagent configuration"


# --- a configuration or machine that is not there -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["run --once", "reconfigure", "rollback", "plan"])
def test_a_bad_configuration_ends_in_2_and_is_told_by_each_command(
    command: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[apps.web]")
    assert cli.main([*command.split(), "--root", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    for sentence in ("apps.web.deploy_to: is missing\n", "apps.web.source: is missing\n", "roles: is missing: it"):
        assert f"bootagent: {config}: {sentence}" in shown.err


def test_a_refused_run_is_remembered_and_told_as_json(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[apps.web]")
    assert cli.main(["reconfigure", "--root", str(tmp_path), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["endings"], len(told["problems"])) == (2, {}, 3)
    assert cli.main(["status", "--root", str(tmp_path), "--json"]) == 2
    status = json.loads(capsys.readouterr().out)
    assert (status["outcome"], status["last_run"]["command"]) == ("refused", "reconfigure")


def test_status_of_a_machine_that_never_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--root", str(tmp_path)]) == 75
    assert capsys.readouterr().out == "never ran\n"


@pytest.mark.parametrize("code", [0, 1, 3])
def test_status_answers_though_the_configuration_is_broken(
    config: Path, tmp_path: Path, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[")
    state.save(Machine(tmp_path), State(last_run=LastRun("r", "run", "a", "b", code, "done")))
    assert cli.main(["status", "--root", str(tmp_path), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code


def test_history_and_timeline_of_a_machine_that_never_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", "--root", str(tmp_path)]) == 0
    assert cli.main(["history", "--root", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == "no run yet\n[]\n"
    assert cli.main(["timeline", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "bootagent: no run yet (bootagent reconfigure)\n"


@pytest.mark.parametrize("command", ["run --once", "stop", "reconfigure", "rollback", "status", "history", "timeline"])
def test_what_the_machine_refuses_is_a_sentence_and_no_traceback(
    command: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a user who is not root, or on a disk that is read-only."""
    for name in ("var", "run"):
        (tmp_path / name).write_text("in the way")
    assert cli.main([*command.split(), "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("bootagent: ")


def test_a_stop_where_there_is_nothing_is_a_mistake_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "nowhere"
    for words in ([], ["--reset"], ["--shutdown"]):
        assert cli.main(["stop", "--root", str(root), *words]) == 2
        said = capsys.readouterr()
        assert f"nothing to stop at {root}: there is neither /var/lib/bootagent nor {root}/etc" in said.err
        assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_as_shells_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(machine: object, definitions: str, wait: float, serving: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bootagent.report.status.wait", interrupted)
    assert cli.main(["status", "--root", str(tmp_path)]) == 130


def test_keys_are_listed_and_a_word_that_none_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "diagnosis"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("lifecycle.diagnosis  -        {}  Where the diagnosis")
    assert lines[-1].startswith("{}: {role}, {environment}, ") and lines[-1].endswith("{tag:KEY} are filled in")
    assert cli.main(["keys", "nosuchword"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        "",
        "bootagent: no key has 'nosuchword' in its name (bootagent keys lists them all)\n",
    )
