"""An environment written for ``chpst -e`` comes out of the real chpst as it went in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tomli
from hypothesis import HealthCheck, given, settings

from bootagent.config import resolve
from bootagent.config.document import Document
from bootagent.errors import ConfigError
from bootagent.services.runit import environment_directory


def through_chpst(
    folder: Path, variables: dict[str, str], *, inherited: dict[str, str] | None = None
) -> dict[str, str]:
    """What a program started by ``chpst -e`` finds in its environment."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in environment_directory(variables).items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        ["/usr/bin/chpst", "-e", folder, "/usr/bin/env", "-0"], capture_output=True, check=True, env=inherited or {}
    )
    pairs = (item.partition(b"=") for item in done.stdout.split(b"\0") if item)
    return {name.decode(): value.decode() for name, _, value in pairs}


@pytest.mark.parametrize(
    "value",
    [
        *("", "x", " x", "\tx", "a b", "a\nb", "a\n", "\n", "\n\n", "\na", "a\n\nb\n", "a \nb", "a\r", "a\r\nb"),
        *(
            "ä ö ü",
            "日本語",
            "\U0001f600",
            "\u2028",
            "\x85",
            "\x01\x1f\x7f",
            "=",
            "a=b",
            "'\"$`\\",
            "-x",
            "#x",
            "x" * 100_000,
        ),
        "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_a_value_comes_through(tmp_path: Path, value: str) -> None:
    assert through_chpst(tmp_path, {"A": value}) == {"A": value}


def test_many_at_once_and_over_what_was_inherited(tmp_path: Path) -> None:
    variables = {"PATH": "/bin", "EMPTY": "", "Lower_1": "x\ny", "Z": "z"}
    assert through_chpst(tmp_path, variables, inherited={"PATH": "/old", "EMPTY": "full", "KEPT": "k"}) == {
        **variables,
        "KEPT": "k",
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.text(max_size=30), min_size=1, max_size=5
    )
)
def test_whatever_a_configuration_lets_pass_comes_through(tmp_path: Path, variables: dict[str, str]) -> None:
    document = tomli.loads(
        '[apps.web]\ndeploy_to = "/srv/web"\nsource = { type = "s3", url = "s3://b/web.json" }\n'
        '[apps.web.services.a]\n[roles.web]\napps = ["web"]'
    )
    # Braces are for coordinates; doubled, they are themselves.
    written = {name: value.replace("{", "{{").replace("}", "}}") for name, value in variables.items()}
    document["apps"]["web"]["services"]["a"]["env"] = written
    try:
        valid = resolve.validate(Document(document, {}, "config.toml"))
    except ConfigError as error:
        assert all("blanks" in problem.sentence for problem in error.problems)
        refused = {problem.key.rpartition(".")[2] for problem in error.problems}
        assert refused == {name for name, value in variables.items() if value[-1:] in (" ", "\t") or "\0" in value}
        return
    env = dict(resolve.resolve(valid, {}, {"Role": "web"}).apps[0].services[0].env)
    assert env == variables
    assert through_chpst(tmp_path, env) == variables


@pytest.mark.parametrize("value", ["x ", "x\t", " ", "\n "])
def test_what_the_configuration_refuses_would_not_have_come_through(tmp_path: Path, value: str) -> None:
    assert through_chpst(tmp_path, {"A": value}) != {"A": value}
