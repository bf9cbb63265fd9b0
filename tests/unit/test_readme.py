"""What README.md shows of a configuration is one that can be used."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path

import pytest
import tomli

from bootagent.config import coordinates, resolve
from bootagent.config.document import Document

README = (Path(__file__).parents[2] / "README.md").read_text()


def examples() -> list[str]:
    """The indented blocks that hold tables of TOML."""
    blocks = groupby(README.splitlines(), key=lambda line: not line or line.startswith("    "))
    texts = [textwrap.dedent("\n".join(lines)).strip() for indented, lines in blocks if indented]
    return [text for text in texts if text.startswith("[")]


#: What the others of a configuration would be, around an example that shows a part of it.
REST = """
[apps.other]
deploy_to = "/srv/other"
source = { type = "image" }
"""
ROLE = "[roles.other]\napps = []\n"


@pytest.mark.parametrize("text", examples(), ids=lambda text: text.splitlines()[0])
def test_each_example_is_a_good_configuration(text: str) -> None:
    roles = "" if "[roles." in text or "[modes." in text else ROLE
    found = tomli.loads(f"{text}\n{REST}{roles}")
    for role in found.get("roles", {}).values():
        role.setdefault("apps", ["other"])
    resolve.validate(Document(found, {}, "config.toml"))


def test_the_complete_example_runs_in_production_what_the_tag_says() -> None:
    (text,) = [one for one in examples() if "[modes.review]" in one]
    document = resolve.validate(Document(tomli.loads(text), {}, "config.toml"))
    production = resolve.resolve(document, {}, {"Environment": "production", "Service": "puma"})
    assert [(app.name, app.only, app.after) for app in production.apps] == [("web", ("puma",), ())]
    review = resolve.resolve(document, {}, {"Environment": "review"})
    assert [(app.name, app.only, app.after) for app in review.apps] == [
        ("databases", None, ()),
        ("web", None, ("databases",)),
    ]


def test_every_name_that_is_filled_in_is_told() -> None:
    for name in (*coordinates.NAMES, "tag:KEY"):
        assert f"`{{{name}}}`" in README
