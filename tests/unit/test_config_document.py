"""Configuration files: read, trusted, merged, and each key traced to its file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootagent.config import document, resolve
from bootagent.config.document import Document, dotted
from bootagent.errors import EXIT_USAGE, ConfigError, Problem

SMALL = """
[apps.web]
deploy_to = "/srv/web"
source = { type = "s3", url = "s3://deploys/web.json" }
[roles.web]
apps = ["web"]
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


def written(folder: Path, **files: str) -> list[Path]:
    """``config`` becomes config.toml, every other name one of conf.d."""
    (folder / "conf.d").mkdir()
    for name, text in files.items():
        path = folder / "config.toml" if name == "config" else folder / "conf.d" / f"{name}.toml"
        path.write_text(text)
    return document.config_files(folder / "config.toml")


def problems(files: list[Path], *, trusted: bool = True) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        document.load(files, trusted=trusted)
    assert caught.value.exit_code == EXIT_USAGE
    return list(caught.value.problems)


# --- which files -------------------------------------------------------------------------------------------------


def test_the_main_file_comes_first_and_then_conf_d_by_name(tmp_path: Path) -> None:
    files = written(tmp_path, config="", b="", a="")
    (tmp_path / "conf.d/notes.txt").write_text("not read")
    assert [str(file.relative_to(tmp_path)) for file in files] == ["config.toml", "conf.d/a.toml", "conf.d/b.toml"]


def test_without_conf_d_there_is_the_main_file(tmp_path: Path) -> None:
    assert document.config_files(tmp_path / "c.toml") == [tmp_path / "c.toml"]


def test_an_absent_file_is_a_problem_that_says_what_to_do(tmp_path: Path) -> None:
    (found,) = problems([tmp_path / "config.toml"])
    assert found.file == str(tmp_path / "config.toml")
    assert "no such file" in found.sentence
    assert "--config" in found.sentence


@pytest.mark.parametrize("content", [b"a = ", b"a = 1\na = 2\n", b"\xff\xfe", b"[apps", b"a = '\x00'"])
def test_what_is_no_toml_names_its_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    (found,) = problems([file])
    assert (found.file, found.key) == (str(file), "")
    assert found.sentence.startswith("cannot be read: ")


def test_a_directory_in_the_place_of_a_file_is_a_problem(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL)
    (tmp_path / "conf.d/oops.toml").mkdir()
    (found,) = problems([*files, tmp_path / "conf.d/oops.toml"])
    assert found.file.endswith("oops.toml")


def test_every_file_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    files = written(tmp_path, config="a =", b="[", c="x = 1")
    assert [Path(found.file).name for found in problems(files)] == ["config.toml", "b.toml"]


# --- merging -----------------------------------------------------------------------------------------------------


def test_tables_are_joined_across_files(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        config="[apps.web]\ndeploy_to = '/srv/web'\n[tags]\nrole = 'R'",
        x="[apps.web]\nkeep_releases = 3\n[apps.api]\ndeploy_to = '/srv/api'",
    )
    assert document.load(files).tables == {
        "apps": {"web": {"deploy_to": "/srv/web", "keep_releases": 3}, "api": {"deploy_to": "/srv/api"}},
        "tags": {"role": "R"},
    }


def test_the_same_value_twice_is_no_conflict(tmp_path: Path) -> None:
    files = written(tmp_path, config="[a]\nb = [1, 2]", x="[a]\nb = [1, 2]\nc = 'd'")
    assert document.load(files).tables == {"a": {"b": [1, 2], "c": "d"}}


def test_a_conflict_names_both_files_and_the_key(tmp_path: Path) -> None:
    files = written(tmp_path, config="[apps.web]\nkeep_releases = 5", x="[apps.web]\nkeep_releases = 6")
    (found,) = problems(files)
    assert (found.file, found.key) == (str(files[1]), "apps.web.keep_releases")
    assert str(files[0]) in found.sentence


@pytest.mark.parametrize(("one", "two"), [("a = 1", "[a]\nb = 1"), ("[a]\nb = 1", "a = 1"), ("a = [1]", "a = [2]")])
def test_a_conflict_of_kinds_names_both_files(tmp_path: Path, one: str, two: str) -> None:
    files = written(tmp_path, config=one, x=two)
    (found,) = problems(files)
    assert (found.file, found.key) == (str(files[1]), "a")
    assert str(files[0]) in found.sentence


def test_all_conflicts_are_told_at_once_even_between_two_of_conf_d(tmp_path: Path) -> None:
    files = written(tmp_path, config="a = 1", m="b = 1\na = 2", n="b = 2\nc = 3")
    assert [(Path(p.file).name, p.key) for p in problems(files)] == [("m.toml", "a"), ("n.toml", "b")]
    assert "m.toml" in problems(files)[1].sentence


# --- where a key came from ---------------------------------------------------------------------------------------


def test_an_error_names_the_file_that_wrote_the_key(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        config=SMALL,
        typo="[apps.web]\nkeep_relases = 3",
        role="[roles.db]\napps = ['wev']",
    )
    with pytest.raises(ConfigError) as caught:
        resolve.validate(document.load(files))
    (found,) = caught.value.problems
    assert str(found) == (
        f"{tmp_path}/conf.d/typo.toml: apps.web.keep_relases: is not a known key; did you mean 'keep_releases'?"
    )
    (tmp_path / "conf.d/typo.toml").unlink()
    with pytest.raises(ConfigError) as caught:
        resolve.validate(document.load(document.config_files(files[0])))
    (found,) = caught.value.problems
    assert (
        str(found) == f"{tmp_path}/conf.d/role.toml: roles.db.apps[0]: 'wev' is no app; did you mean 'web'? known: web"
    )


def test_a_missing_key_is_blamed_on_the_file_of_the_table_above(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL, api="[apps.api]\ndeploy_to = '/srv/api'")
    with pytest.raises(ConfigError) as caught:
        resolve.validate(document.load(files))
    (found,) = caught.value.problems
    assert (Path(found.file).name, found.key, found.sentence) == ("api.toml", "apps.api.source", "is missing")


def test_a_problem_of_nobody_is_blamed_on_the_main_file() -> None:
    found = Document({}, {}, "config.toml").problem(("roles",), "is missing")
    assert str(found) == "config.toml: roles: is missing"


@pytest.mark.parametrize(
    ("path", "text"),
    [((), ""), (("a",), "a"), (("a", "b"), "a.b"), (("a", "[0]", "path"), "a[0].path")],
)
def test_key_paths_are_written_as_in_toml(path: tuple[str, ...], text: str) -> None:
    assert dotted(path) == text


# --- trust -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o400])
def test_a_file_only_we_can_write_is_taken(tmp_path: Path, mode: int) -> None:
    files = written(tmp_path, config=SMALL)
    files[0].chmod(mode)
    assert document.load(files).tables["roles"]


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o646])
def test_a_file_anyone_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    files = written(tmp_path, config=SMALL)
    files[0].chmod(mode)
    (found,) = problems(files)
    assert found.file == str(files[0])
    assert f"refused: {files[0]} can be written by others (mode {mode:o})" in found.sentence
    assert "chmod go-w" in found.sentence


def test_a_file_in_a_directory_anyone_can_write_is_refused(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL, x="")
    (tmp_path / "conf.d").chmod(0o777)
    (found,) = problems(files)
    assert found.file == str(files[1])
    assert f"{tmp_path}/conf.d can be written by others (mode 777)" in found.sentence


def test_a_directory_higher_up_counts_too(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    files = written(tmp_path / "a/b", config=SMALL)
    (tmp_path / "a").chmod(0o777)
    assert f"{tmp_path}/a can be written" in problems(files)[0].sentence


def test_a_sticky_directory_is_safe_since_only_an_owner_can_rename(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL)
    tmp_path.chmod(0o1777)
    assert document.load(files).tables["roles"]


def test_a_draft_may_lie_anywhere(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL)
    files[0].chmod(0o666)
    assert document.load(files, trusted=False).tables["roles"]


def test_a_loose_file_is_not_read_at_all(tmp_path: Path) -> None:
    files = written(tmp_path, config="a =", x="b = 1")
    files[0].chmod(0o666)
    (found,) = problems(files)
    assert "refused" in found.sentence


def test_a_link_to_a_file_anyone_can_write_is_refused(tmp_path: Path) -> None:
    loose = tmp_path / "loose.toml"
    loose.write_text(SMALL)
    loose.chmod(0o666)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.toml").symlink_to(loose)
    (found,) = problems([tmp_path / "etc/config.toml"])
    assert "loose.toml can be written by others" in found.sentence


def test_a_link_that_anyone_can_replace_is_refused(tmp_path: Path) -> None:
    """What it points at is safe, but who may write its directory decides where it points when it is read."""
    (tmp_path / "safe.toml").write_text(SMALL)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose").chmod(0o777)
    (tmp_path / "loose/config.toml").symlink_to(tmp_path / "safe.toml")
    (found,) = problems([tmp_path / "loose/config.toml"])
    assert "refused" in found.sentence


@as_root
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL)
    os.chown(files[0], 65534, 0)
    (found,) = problems(files)
    assert f"{files[0]} belongs to uid 65534" in found.sentence


@as_root
def test_a_group_that_can_write_is_refused_unless_it_is_roots(tmp_path: Path) -> None:
    files = written(tmp_path, config=SMALL)
    files[0].chmod(0o664)
    assert document.load(files).tables["roles"]
    os.chown(files[0], 0, 65534)
    files[0].chmod(0o664)
    (found,) = problems(files)
    assert "mode 664" in found.sentence
