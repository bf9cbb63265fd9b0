"""The man page and the shell completion, which are made from the command line's own parser."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bootagent import cli

pytestmark = pytest.mark.spawns

PACKAGING = Path(__file__).parents[2] / "packaging"
EPOCH = "1700000000"  # 2023-11-14

Complete = Callable[..., list[str]]


def printed(program: str, **environment: str) -> str:
    """What a program of packaging/ prints, under nothing but PATH and ``environment``."""
    env = {"PATH": os.environ["PATH"], **environment}
    argv = [sys.executable, str(PACKAGING / program)]
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (commands,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices


COMMANDS = sorted(parsers())


@pytest.fixture(scope="module")
def page() -> str:
    return printed("manpage", SOURCE_DATE_EPOCH=EPOCH)


@pytest.fixture(scope="module")
def shown(page: str) -> str:
    """The page as a reader sees it, on one line."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-rLL=200n", "-P-cbou"], input=page, capture_output=True, text=True, check=True
    )
    return " ".join(done.stdout.split())


# --- the man page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["groff", "-man", "-Tutf8", "-ww", "-z"], ["mandoc", "-Tlint"]])
def test_formatters_find_nothing_to_complain_of(page: str, argv: list[str]) -> None:
    done = subprocess.run(argv, input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_page_is_the_same_from_the_same_commit(page: str) -> None:
    assert page == printed("manpage", SOURCE_DATE_EPOCH=EPOCH, LANG="de_DE.UTF-8", TZ="Asia/Tokyo", COLUMNS="40")
    assert "2023-11-14" in page.splitlines()[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_told_with_its_options(command: str, page: str) -> None:
    (part,) = re.findall(rf"^\.SS {command}\n(.*?)(?=^\.S[SH] )", page, re.MULTILINE | re.DOTALL)
    flags = set(re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", parsers()[command].format_help(), re.MULTILINE)) - {"--help"}
    assert set(re.findall(r"--[a-z0-9-]+", part.replace("\\-", "-"))) >= flags
    for flag in flags:
        term = rf"^\.TP\n.*\\fB{re.escape(flag.replace('-', chr(92) + '-'))}\\fR.*\n[^.]"
        assert re.search(term, page, re.MULTILINE), f"{flag} is not explained"


def test_what_help_hides_is_hidden(shown: str) -> None:
    assert "--once" in shown
    assert "--because" not in shown and "SUPPRESS" not in shown


def test_what_the_parser_does_not_know_is_there(shown: str) -> None:
    for said in ("FILES /etc/bootagent/config.toml", "EXIT STATUS", "75 Try later", "SIGHUP Reconfigure", "SEE ALSO"):
        assert said in shown


def test_text_is_no_roff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGING))
    source = compile((PACKAGING / "manpage").read_text(), "manpage", "exec")
    names: dict[str, object] = {"__name__": "manpage", "__file__": str(PACKAGING / "manpage")}
    exec(source, names)
    text = ".SH not a heading \\fB 'quoted' --dash ^ ~ ` \u2026 \"x\""
    roff = names["_prose"](text)  # type: ignore[operator]
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-rLL=200n", "-P-cbou"],
        input=f".TH X 1\n.SH Y\n{roff}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert text in " ".join(done.stdout.split())


# --- completion --------------------------------------------------------------------------------------------------


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """``complete("status", "--wa")``: what bash offers for the last word, in a directory with one file and another."""
    (tmp_path / "bootagent.bash").write_text(printed("completion"))
    (tmp_path / "work/my drafts").mkdir(parents=True)
    (tmp_path / "work/my file.toml").touch()
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin/bootagent"
    stand_in.write_text("#!/bin/sh\necho 'web  20261111120000 *  good  0123456789ab  2026-11-11T12:00:00.000Z'\n")
    stand_in.chmod(0o755)
    script = (
        "set -u; . ../bootagent.bash; complete -p bootagent >&2\n"
        'compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _bootagent; '
        '[ ${#COMPREPLY[@]} = 0 ] || printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def run(*words: str) -> list[str]:
        done = subprocess.run(
            [shutil.which("bash") or "bash", "--norc", "-c", script, "bash", "bootagent", *words],
            cwd=tmp_path / "work",
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == "complete -F _bootagent bootagent\n"
        return done.stdout.splitlines()

    return run


def test_commands_are_completed(complete: Complete) -> None:
    assert sorted(complete("")) == COMMANDS
    assert complete("rec") == ["reconfigure"]
    assert complete("--v") == ["--version"]


def test_options_are_completed(complete: Complete) -> None:
    assert complete("status", "--wa") == ["--wait"]
    assert "--tag" in complete("reconfigure", "--json", "--")
    assert "--tag" not in complete("status", "--")
    assert "--because" not in complete("run", "--")


def test_values_are_completed(complete: Complete) -> None:
    assert complete("reconfigure", "--log", "") == ["auto", "text", "json"]
    assert complete("reconfigure", "--log", "j") == ["json"]
    assert complete("publish", "--compression", "") == ["zst", "gz"]
    assert complete("status", "--wait", "") == []


def test_values_after_an_equals_sign_are_completed_as_readline_breaks_them(complete: Complete) -> None:
    assert complete("reconfigure", "--log", "=") == ["auto", "text", "json"]
    assert complete("reconfigure", "--log", "=", "te") == ["text"]


def test_files_directories_and_releases_are_completed(complete: Complete) -> None:
    assert complete("status", "--config", "my f") == ["my file.toml"]
    assert sorted(complete("check", "my")) == ["my drafts", "my file.toml"]
    assert complete("status", "--root", "my") == ["my drafts"]
    assert complete("rollback", "2026") == ["20261111120000"]
    assert complete("history", "my") == []


def test_the_script_is_clean(tmp_path: Path) -> None:
    script = tmp_path / "bootagent.bash"
    script.write_text(printed("completion"))
    subprocess.run(["shellcheck", "--shell=bash", script], check=True)
