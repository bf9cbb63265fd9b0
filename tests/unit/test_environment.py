"""Environments: files as chpst reads them, directories merged, dumps in and out, secrets that do not show."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from bootagent.environment import concealed, directories, dump, exchange, fetch, secrets, values
from bootagent.environment.concealed import Concealed
from bootagent.environment.directories import Layer, Tree
from bootagent.environment.fetch import Asked, Store
from bootagent.environment.secrets import Secret
from bootagent.errors import BootagentError, MachineError
from bootagent.machine import Machine
from bootagent.steps.fetched_secrets import FetchedSecrets, ServiceSecrets

#: What a variable can hold, and a file for chpst too.
VALUES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60).filter(
    lambda value: not value.endswith((" ", "\t"))
)
TRICKY = st.text(st.sampled_from("ab '\"\\$`#=!\n\r\t\u00e9{}"), max_size=20).filter(
    lambda value: not value.endswith((" ", "\t"))
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
#: What a file of a directory can be named, and hold: whatever its reader does not pass over, or refuse.
FILE_NAMES = st.one_of(NAMES.map(str.encode), st.binary(min_size=1, max_size=8)).filter(
    lambda name: not name.startswith(b".") and not set(name) & set(b"=/\0\n")
)
CONTENTS = st.one_of(
    st.binary(max_size=20), st.text(st.sampled_from("ab '\"\\$`#=! \n\r\t\0\ufeff"), max_size=20).map(str.encode)
)
VARIABLES = st.dictionaries(NAMES, VALUES | TRICKY | st.none(), max_size=6)
patient = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- one variable ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"", None),
        (b"\n", ""),
        (b"\nmore\n", ""),
        (b" \t\n", ""),
        (b"a", "a"),
        (b"  a \t\n", "  a"),
        (b"a\nb\n", "a"),
        (b"a\0b\0\n", "a\nb\n"),
        (b"a \0\n", "a \n"),
        (b"a\0 \n", "a\n"),
        (b"\xff\n", "\udcff"),
    ],
)
def test_a_file_is_read_as_chpst_reads_it(content: bytes, value: str | None) -> None:
    assert values.decode(content) == value


@pytest.mark.spawns
def test_chpst_agrees(tmp_path: Path) -> None:
    contents = {"A": b"", "B": b"\n", "C": b"  a \t\nb\n", "D": b"a\0b \0 \n", "E": b"\xff", "F": b"x", ".G": b"no"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    words = ["env", "-i", "A=old", "chpst", "-e", str(tmp_path), "/usr/bin/env", "-0"]
    printed = subprocess.run(words, capture_output=True, check=True).stdout.decode(errors="surrogateescape")
    found = dict(item.split("=", 1) for item in printed.split("\0") if item)
    ours = directories.read_directory(tmp_path, ".", "d")
    assert found == {name: value for name, value in ours.items() if value is not None}
    assert ours["A"] is None and "PATH" not in found


@given(VALUES | TRICKY)
def test_a_value_survives_its_file(value: str) -> None:
    assert values.value_problem("A", value) is None
    assert values.decode(values.encode(value)) == value


@pytest.mark.parametrize("value", ["hush\0b", "hush ", "hush\n\t", "hush" * values.MAX_BYTES, "hush\ud800"])
def test_what_no_file_can_hold_is_told_by_name(value: str) -> None:
    with pytest.raises(BootagentError) as caught:
        values.require("NAME", value, ".env")
    assert "'NAME' of .env" in str(caught.value) and "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".A", "A=B", "A/B", "A\0", "x" * 256])
def test_names_that_no_file_can_bear(name: str) -> None:
    with pytest.raises(BootagentError):
        values.require(name, "a", ".env")


# --- directories -------------------------------------------------------------------------------------------------


def tree_in(root: Path, files: dict[str, str], **more: Any) -> Tree:
    for name, content in files.items():
        path = root / "srv/env" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Tree("/srv", "env", ("common", "staging"), "env", **more)


def test_the_inner_directory_wins_and_siblings_are_clean(tmp_path: Path) -> None:
    files = {
        "common/A": "1",
        "common/B": "1",
        "common/GONE": "1",
        "common/BACK": "1",
        "staging/B": "2",
        "staging/BACK": "",
        "production/B": "no",
        "web/GONE": "",
        "web/.hidden": "no",
        "web/puma/BACK": "3",
        "web/worker/W": "no",
        "api/B": "no",
    }
    layers = directories.read(Machine(tmp_path), tree_in(tmp_path, files), "web", "puma")
    assert [layer.name for layer in layers] == ["env/common", "env/staging", "env/web", "env/web/puma"]
    assert directories.merged(layers) == {"A": "1", "B": "2", "GONE": None, "BACK": "3"}


def test_secrets_go_over_the_tree_and_the_configuration_over_all() -> None:
    layers = [Layer("common", {"A": "tree", "B": "tree", "C": "tree", "D": None})]
    explicit = [("C", "said"), ("E", "said")]
    assert directories.for_service(layers, {"B"}, explicit) == (
        ("A", "tree"),
        ("C", "said"),
        ("D", None),
        ("E", "said"),
    )


def test_a_directory_that_is_missing_is_empty_and_a_tree_that_is_missing_is_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert directories.merged(directories.read(machine, tree_in(tmp_path, {"other/A": "1"}), "web", "puma")) == {}
    with pytest.raises(MachineError, match="nowhere, and it does not exist"):
        directories.read(machine, Tree("/srv/nowhere", ".", (), "/srv/nowhere"), "web", "puma")
    with pytest.raises(BootagentError, match="does not exist") as caught:
        directories.read(machine, Tree("/srv", "nowhere", (), "nowhere", of_release=True), "web", "puma")
    assert not isinstance(caught.value, MachineError), "the release is to blame"
    (tmp_path / "srv/empty").mkdir()
    assert directories.read(machine, Tree("/srv", "empty", (), "empty"), "web", "puma")[0].variables == {}
    with pytest.raises(BootagentError, match="does not exist"):
        directories.read(machine, Tree("/srv", "empty", (), "empty", copied=True), "web", "puma")


def test_a_release_cannot_lead_root_elsewhere(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    tree = tree_in(tmp_path, {"common/A": "1"}, of_release=True)
    (tmp_path / "srv/env/web").symlink_to("/etc")
    with pytest.raises(BootagentError, match="is a link"):
        directories.read(machine, tree, "web", "puma")
    (tmp_path / "srv/env/web").unlink()
    (tmp_path / "srv/env/common/SHADOW").symlink_to("/etc/shadow")
    with pytest.raises(BootagentError, match="SHADOW cannot be read"):
        directories.read(machine, tree, "web", "puma")


def test_every_service_of_an_app_is_checked(tmp_path: Path) -> None:
    tree = tree_in(tmp_path, {"web/A": "1", "web/puma/A=B": "1"})
    directories.read(Machine(tmp_path), tree, "web", "worker")
    with pytest.raises(BootagentError, match="'A=B' of env/web/puma"):
        directories.check(Machine(tmp_path), tree, "web")


# --- dumps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=b", {"A": "b"}),
        ("\ufeffA=b\r\nC=d\r\n", {"A": "b", "C": "d"}),
        ("# comment\n\n  export A = b c # comment\n", {"A": "b c"}),
        ("A=b#c\nD= # comment\nE=\n", {"A": "b#c", "D": "", "E": ""}),
        ("A=C:\\dir\\new $HOME `x`\n", {"A": "C:\\dir\\new $HOME `x`"}),
        ("A='b # \\n $c' # d\n", {"A": "b # \\n $c"}),
        ('A="b\\n\\"c\\" \\\\n \\d"\nE=f', {"A": 'b\n"c" \\n \\d', "E": "f"}),
        ("A=\"one\ntwo\"\nB='three\n\nfour'\n", {"A": "one\ntwo", "B": "three\n\nfour"}),
        ("A='it'\\''s'\nB=\\''quoted'\\'\n", {"A": "it's", "B": "'quoted'"}),
        ("A=1\nA=1 # the same\nunset B\n", {"A": "1", "B": None}),
        ("A=it's\nB=1", {"A": "it's", "B": "1"}),
        ('{"A": "b\\n ", "C": null}', {"A": "b\n ", "C": None}),
        ("", {}),
        (
            "=== myapp Config Vars\n\nA:    b: 'c' \"# d$\nLONG: e=f\\n\nN:\n",
            {"A": "b: 'c' \"# d$", "LONG": "e=f\\n", "N": ""},
        ),
        ("=== myapp Config Vars\r\nA: b\r\nLONG: c\r\n", {"A": "b", "LONG": "c"}),
        ("URL: redis://:x@h\n", {"URL": "redis://:x@h"}),
        ("=== myapp has no config vars.\n", {}),
    ],
)
def test_dumps_are_read(text: str, found: dict[str, str | None]) -> None:
    assert dump.parse(text.encode()) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=b\nwhat is this\n", "line 2 is no assignment"),
        ("A=b\nB='c\n\n", "line 2: the quote in the value of B"),
        ("A='b' c\n", "line 1: there is more after the value of A"),
        ("A='x'\nMIIhush/hush==\n", r"line 2 is no assignment NAME=value \(put a value of several lines in quotes\)$"),
        ('{"A": 1}', r"the value of 'A' is a number, not a text \(put it in quotes\)"),
        ('{"A": true}', "the value of 'A' is true or false, not a text"),
        ('{"A": ["hush"]}', "the value of 'A' is a list, not a text"),
        ('{"A": "hush", "A": "hush2"}', "'A' has two values"),
        ('{"A": "hush",}', "line 1: it begins like JSON"),
        ('{"A":' * 100_000, "it begins like JSON"),
        ("\n1A=hush", "line 2, '1A', is no assignment"),
        ("A=hush\nB=2\nA=hush2", "line 3 gives A another value than a line before it"),
        ("A=hush\nunset A", "line 2 gives A another value"),
        ("=== myapp Config Vars\nA: hush\nA: hush2\n", "line 3 gives A another value"),
        (
            "=== x Config Vars\nKEY:   -----BEGIN\nhush\nOTHER: 1\n",
            r"line 3 is no NAME: .*heroku config --shell or --json",
        ),
        ("=== x Config Vars\nKEY:      a\nfoo: hush\nOTHERKEY: 1\n", "line 3 is no NAME: value like those before it"),
        ("=== x Config Vars\nA: b\n=== y Config Vars\nC: d\n", "line 3 is no NAME"),
    ],
)
def test_what_is_no_dump_is_refused_without_its_values(text: str, said: str) -> None:
    with pytest.raises(BootagentError, match=said) as caught:
        dump.parse(text.encode(), "old.env")
    assert str(caught.value).startswith("old.env: ")
    assert "hush" not in str(caught.value)


@given(VARIABLES)
def test_what_is_written_is_read_again(variables: dict[str, str | None]) -> None:
    assert dump.parse(dump.text(variables).encode()) == variables
    assert dump.parse(dump.to_json(variables).encode()) == variables


@given(st.dictionaries(NAMES, VALUES | TRICKY, max_size=6))
def test_what_a_shell_would_be_given_is_read(variables: dict[str, str]) -> None:
    quoted = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    assert dump.parse(quoted.encode()) == variables


@given(st.dictionaries(NAMES, VALUES | TRICKY, max_size=6))
def test_herokus_dump_loses_nothing(variables: dict[str, str]) -> None:
    quoted = "".join(f"{name}={heroku_quoted(value)}\n" for name, value in variables.items())
    assert dump.parse(quoted.encode()) == variables


@given(st.dictionaries(NAMES, (VALUES | TRICKY).map(lambda value: value.strip().replace("\n", "-")), max_size=6))
def test_herokus_listing_loses_nothing(variables: dict[str, str]) -> None:
    """As the Heroku CLI writes it: the values are stripped, and in one column."""
    width = max(map(len, variables), default=0) + 2
    lines = [f"{name}:".ljust(width) + value for name, value in sorted(variables.items())]
    assert dump.parse("\n".join(["=== myapp Config Vars", "", *lines, ""]).encode()) == variables


def heroku_quoted(value: str) -> str:
    """As the package shell-escape does, by which the Heroku CLI quotes."""
    if all(char.isascii() and (char.isalnum() or char in "_/:=-") for char in value):
        return value
    text = "'" + value.replace("'", "'\\''") + "'"
    while text.startswith("''"):
        text = text[2:]
    return text.replace("\\'''", "\\'")


@patient
@given(VARIABLES)
def test_a_directory_and_back_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, Any]
) -> None:
    place = tmp_path_factory.mktemp("env") / "new"
    exchange.put(Machine(), place, dump.parse(dump.text(variables).encode()), ".env")
    assert exchange.read(place) == variables
    for path in place.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.spawns
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variables=st.dictionaries(NAMES.map(lambda name: f"V_{name}"), VALUES | TRICKY, max_size=4))
def test_a_shell_agrees_about_what_is_written(variables: dict[str, str]) -> None:
    script = "set -a\n" + dump.text(variables) + "exec /usr/bin/env -0\n"
    printed = subprocess.run(["sh"], input=script.encode(), env={}, capture_output=True, check=True).stdout
    found = dict(item.split("=", 1) for item in printed.decode().split("\0") if item.startswith("V_"))
    assert found == variables


@patient
@given(files=st.dictionaries(FILE_NAMES, CONTENTS, max_size=5))
def test_whatever_a_directory_holds_comes_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, bytes]
) -> None:
    place = tmp_path_factory.mktemp("env")
    (place / "old").mkdir()
    for name, content in files.items():
        (place / "old" / os.fsdecode(name)).write_bytes(content)
    found = exchange.read(place / "old")
    assert len(found) == len(files)
    exchange.put(Machine(), place / "json", dump.parse(dump.to_json(found).encode()), "dump.json")
    assert exchange.read(place / "json") == found
    # A shell has no name for some; those are refused, and nothing else is.
    odd = [name for name in found if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)]
    if odd:
        with pytest.raises(BootagentError, match=r"is no name for a shell .*--json"):
            dump.text(found)
    shells = {name: value for name, value in found.items() if name not in odd}
    exchange.put(Machine(), place / "text", dump.parse(dump.text(shells).encode(errors="surrogateescape")), ".env")
    assert exchange.read(place / "text") == shells


@pytest.mark.parametrize("name", ["A.B", "A-B", "1A", "A B", "\u00e9", "A'", "A$(x)"])
def test_a_name_that_no_shell_has_is_refused_in_a_dump_for_one(name: str) -> None:
    with pytest.raises(BootagentError, match="is no name for a shell"):
        dump.text({"A": "1", name: "hush"})
    assert dump.parse(dump.to_json({name: "x"}).encode()) == {name: "x"}


def test_nothing_is_written_when_something_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BootagentError, match=r"'B' of \.env cannot be a variable: its value ends in a blank"):
        exchange.put(Machine(), tmp_path / "env", {"A": "fine", "B": "hush "}, ".env")
    assert not (tmp_path / "env").exists()
    with pytest.raises(BootagentError, match="does not exist"):
        exchange.read(tmp_path / "env")


# --- secrets -----------------------------------------------------------------------------------------------------


def test_a_secret_does_not_show(caplog: pytest.LogCaptureFixture) -> None:
    secret = Concealed("hush")
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("%s %r", secret, [secret])
    shown = [str(secret), f"{secret}", f"{secret!r:>20}", repr({"a": Secret(secret, "ssm:/a")}), caplog.text]
    assert not [text for text in shown if "hush" in text]
    assert secret.reveal() == "hush" and secret == Concealed("hush") != Concealed("other")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_what_a_program_printed_is_told_without_secrets() -> None:
    hidden = [Concealed("s3cr3t"), Concealed("s3cr3t-and-more"), Concealed("first line\n second\n"), Concealed("abc")]
    assert concealed.redacted("url s3cr3t-and-more, s3cr3t\nabc", hidden) == "url (secret), (secret)\nabc"
    assert concealed.redacted("a first line, and second", hidden) == "a (secret), and (secret)"
    assert concealed.redacted("and-more at the begin", hidden) == "and-more at the begin"
    assert concealed.redacted("and-more at the begin", hidden, cut=True) == "(secret) at the begin"
    assert concealed.redacted("x\ufffdyz", [Concealed("x\udcffyz")]) == "(secret)"


def store(**found: Any) -> Store:
    made = Store()
    made.parameters = {name: Concealed(value) for name, value in found.get("parameters", {}).items()}
    made.secrets = {name: Concealed(value) for name, value in found.get("secrets", {}).items()}
    made.paths = {
        path: {name: Concealed(value) for name, value in below.items()}
        for path, below in found.get("paths", {}).items()
    }
    return made


def revealed(found: dict[str, Secret]) -> dict[str, tuple[str, str]]:
    return {name: (secret.value.reveal(), secret.origin) for name, secret in found.items()}


def test_what_secrets_become() -> None:
    got = store(
        parameters={"/web/A": "1", "plain": "2", "/web/B:3": "3"},
        paths={"/web/": {"/web/C": "4", "/web/deep/D": "5"}},
        secrets={"db": '{"E": "6", "F": 1.10, "odd": [1]}', "text": "whole"},
    )
    asked = ["ssm:/web/A", "ssm:plain", "ssm:/web/B:3", "ssm:/web/", "secretsmanager:db#E", "secretsmanager:db#F"]
    named = [Asked("G", "secretsmanager:db#E"), Asked("H", "secretsmanager:text"), Asked("A", "ssm:plain")]
    assert revealed(fetch.variables(got, [*(Asked(None, one) for one in asked), *named])) == {
        "A": ("2", "ssm:plain"),
        "plain": ("2", "ssm:plain"),
        "B": ("3", "ssm:/web/B:3"),
        "C": ("4", "ssm:/web/C"),
        "D": ("5", "ssm:/web/deep/D"),
        "E": ("6", "secretsmanager:db#E"),
        "F": ("1.10", "secretsmanager:db#F"),
        "G": ("6", "secretsmanager:db#E"),
        "H": ("whole", "secretsmanager:text"),
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(None, "ssm:/empty/"), "no parameter below ssm:/empty/"),
        (Asked(None, "ssm:/twice/"), "ssm:/twice/a/K and ssm:/twice/b/K would both be the variable K"),
        (Asked(None, "ssm:/odd/"), "'not-a-name' is no name"),
        (Asked("A", "ssm:/odd/"), "many parameters"),
        (Asked("A", "ssm:/nul"), "'A' of ssm:/nul cannot be a variable: its value holds a NUL"),
        (Asked(None, "secretsmanager:text"), "secretsmanager:text is no JSON object"),
        (Asked(None, "secretsmanager:list"), "secretsmanager:list is no JSON object"),
        (Asked(None, "secretsmanager:odd"), "'K' of secretsmanager:odd is neither text nor number"),
        (Asked(None, "secretsmanager:odd#L"), "secret odd has no key 'L'"),
        (Asked(None, "secretsmanager:name"), "'a-b' is no name"),
    ],
)
def test_what_cannot_be_a_variable_is_told_without_its_value(asked: Asked, said: str) -> None:
    got = store(
        parameters={"/nul": "hush\0"},
        paths={
            "/empty/": {},
            "/twice/": {"/twice/a/K": "hush", "/twice/b/K": "hush"},
            "/odd/": {"/odd/not-a-name": "hush"},
        },
        secrets={"text": "hush {", "list": '["hush"]', "odd": '{"K": {"hush": "hush"}}', "name": '{"a-b": "hush"}'},
    )
    with pytest.raises(BootagentError) as caught:
        fetch.variables(got, [asked])
    assert said in str(caught.value)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert "hush" not in repr([(error, vars(error)) for error in chain if error])


@pytest.mark.spawns
def test_secrets_are_there_whole_and_for_their_owner_alone(tmp_path: Path) -> None:
    machine, place = Machine(tmp_path), secrets.place("web", "puma")
    assert place == "/run/bootagent/secrets/web.puma" and secrets.read(machine, place) is None
    with pytest.raises(MachineError, match=r"web\.puma have not been fetched"):
        secrets.require(machine, place)
    first = {"A": Secret(Concealed("one\n two\n"), "ssm:/web/A"), "B": Secret(Concealed(""), "ssm:/web/B")}
    secrets.write(machine, place, first)
    assert secrets.require(machine, place) == {"A": Concealed("one\n two\n"), "B": Concealed("")}
    assert secrets.origins(machine, place) == {"A": "ssm:/web/A", "B": "ssm:/web/B"}
    real = tmp_path / place.lstrip("/")
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE(real.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in real.iterdir()} == {0o600}

    (real.parent / ".web.puma.new").mkdir()  # as a killed run leaves it
    before = secrets.digest(secrets.require(machine, place))
    secrets.write(machine, place, {"A": Secret(Concealed("other"), "ssm:/web/A")})
    assert secrets.require(machine, place) == {"A": Concealed("other")}
    assert secrets.digest(secrets.require(machine, place)) != before
    assert [path.name for path in real.parent.iterdir()] == ["web.puma"]
    assert secrets.places(machine, "web") == [place] and secrets.places(machine, "we") == []

    (real / "A").chmod(0o644)
    assert secrets.read(machine, place) is None, "others could have read it: it is written anew"
    secrets.remove(machine, place)
    assert secrets.places(machine, "web") == []


@pytest.mark.spawns
def test_secrets_are_kept_in_memory_only() -> None:
    found = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", "/run"], capture_output=True, text=True, check=False)
    if found.stdout.split() in (["tmpfs"], ["ramfs"]):
        secrets.require_memory(Machine())
    else:
        with pytest.raises(BootagentError, match="kept in memory only, and /run/bootagent/secrets would be on"):
            secrets.require_memory(Machine())
    secrets.require_memory(Machine(Path("/nowhere")))  # a test's machine


def test_a_step_with_secrets_is_a_value_that_shows_none() -> None:
    made = [
        FetchedSecrets("web", (ServiceSecrets("/run/x", (Asked(None, "ssm:/web/"),)),), "eu-west-1") for _ in range(2)
    ]
    made[0]._got.append(store(paths={"/web/": {"/web/A": "hush"}}))
    assert made[0] == made[1]
    assert "hush" not in f"{made[0]} {made[0]!r}"
    assert str(made[0]) == "fetch the secrets of web (ssm:/web/)"
