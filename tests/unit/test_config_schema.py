"""The schema, our own reading of it, and the sentences it makes."""

from __future__ import annotations

import copy
import datetime
import json
import re
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from bootagent.config import schema

Table = dict[str, Any]
Path = tuple[str | int, ...]

REFERENCE = Draft202012Validator(schema.root())

#: Says something at every key the schema knows.
FULL: Table = {
    "tags": {
        "role": "Role",
        "environment": "Stage",
        "required": ["Team"],
        "within": 30,
        "defaults": {"Team": "none"},
    },
    "apps": {
        "web": {
            "deploy_to": "/srv/web",
            "user": "deploy",
            "group": "www-data",
            "source": {"type": "s3", "url": "s3://deploys/web/{environment}.json", "region": "eu-west-1"},
            "linked_files": ["config/database.yml", {"path": ".env", "from": "s3://secrets/{environment}/env"}],
            "linked_dirs": ["log", "tmp/pids"],
            "keep_releases": 3,
            "hooks": {"prepare": ["bin/prepare", "--all"], "within": "5m"},
            "release_services": "config/service",
            "services": {
                "puma": {
                    "command": ["bundle", "exec", "puma"],
                    "user": "deploy",
                    "group": "deploy",
                    "env": {"RAILS_ENV": "{environment}"},
                    "log": "/var/log/puma",
                    "stable_for": 0.5,
                    "stop_within": "90s",
                    "check": {"http": "http://127.0.0.1:9292/up", "within": "30s"},
                },
                "sidekiq": {"check": {"command": ["bin/alive"]}},
                "metrics": {"check": {"tcp": "127.0.0.1:9394"}},
            },
            "limits": {"unpacked": "2GiB", "files": 1000, "reserve": 1048576, "within": "1h"},
        },
        "api": {"deploy_to": "/srv/api", "source": {"type": "s3", "url": "s3://deploys/api.tar.zst"}},
        "jobs": {
            "deploy_to": "/apps/jobs",
            "source": {
                "type": "nfs",
                "server": "{tag:Server}.internal",
                "export": "/apps",
                "mountpoint": "/apps",
                "options": ["nfsvers=4.1"],
                "copy": True,
                "path": "jobs/current",
                "within": "30s",
                "fallback": "image",
            },
        },
        "shop": {
            "deploy_to": "/srv/shop",
            "source": {
                "type": "ebs",
                "snapshot": {"Name": "shop {environment}"},
                "owner": "123456789012",
                "holds": "deploy_to",
                "mountpoint": "/cp",
                "bind": True,
                "options": ["noatime"],
                "device": "/dev/sdg",
                "volume": {
                    "type": "gp3",
                    "iops": 4000,
                    "throughput": 250,
                    "encrypted": True,
                    "kms_key": "alias/shop",
                    "initialization_rate": 200,
                    "size": "20GiB",
                },
                "within": 600,
            },
        },
        "blog": {
            "deploy_to": "/srv/blog",
            "source": {
                "type": "git",
                "url": "git@example.com:blog.git",
                "ref": "{environment}",
                "key": "ssm:/deploy/key",
                "known_hosts": "/etc/ssh/ssh_known_hosts",
                "submodules": True,
                "fallback": {"type": "image", "path": "/opt/blog"},
            },
        },
        "baked": {"deploy_to": "/srv/baked", "source": {"type": "image", "path": "/opt/baked"}},
    },
    "roles": {
        "web": {"apps": ["web"], "services": ["puma", "web.sidekiq"]},
        "all": {"apps": "*"},
        "db": {
            "apps": [],
            "volumes": {
                "data": {
                    "mountpoint": "/data",
                    "tags": {"Name": "db {environment}"},
                    "snapshot": {"Name": "db"},
                    "owner": "self",
                    "volume": {"type": "io2", "iops": 1000},
                    "filesystem": "ext4",
                    "options": ["noatime", "discard"],
                    "user": "postgres",
                    "group": "postgres",
                    "device": "/dev/sdp",
                    "delete_on_termination": False,
                    "within": "5m",
                }
            },
        },
    },
    "runit": {"service_dir": "/etc/service", "definitions": "/etc/sv"},
}

SMALLEST: Table = {
    "apps": {"web": {"deploy_to": "/srv/web", "source": {"type": "s3", "url": "s3://b/web.tar"}}},
    "roles": {"web": {"apps": ["web"]}},
}


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


PLACES = [path for path in places(FULL) if path and path[:2] != ("apps", "api")]


def replaced(document: Table, path: Path, value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def around(path: Path) -> Table:
    """As little of FULL as is needed for a change at ``path`` to be the only thing wrong: validation takes its time."""
    document = copy.deepcopy(SMALLEST)
    head = path[:3] if path[0] == "apps" else path[:1]
    if path[0] == "apps" and len(path) > 1:
        document["apps"].setdefault(path[1], copy.deepcopy(at(FULL, path[:2])))
    if path[:3] == ("apps", "web", "services"):
        document["apps"]["web"]["services"] = {}
        head = path[:4]
    at(document, head[:-1])[head[-1]] = copy.deepcopy(at(FULL, head))
    return document


def ours_takes(document: Any) -> bool:
    return not list(schema.check(document))


def reference_takes(document: Any) -> bool:
    return bool(REFERENCE.is_valid(document))


def told(document: Any) -> list[tuple[str, str]]:
    return [(".".join(path), sentence) for path, sentence in schema.check(document)]


# --- the schema itself -------------------------------------------------------------------------------------------


def test_it_is_a_schema_of_the_draft_it_names() -> None:
    assert schema.root()["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema.root())


def test_it_uses_only_words_our_reader_knows() -> None:
    known = {
        *("$schema", "$defs", "$ref", "title", "description", "default", "type", "oneOf", "const", "enum"),
        *("properties", "additionalProperties", "propertyNames", "required", "items", "minItems", "pattern"),
        *("minimum", "maximum"),
        "form",  # not one of JSON Schema's, which has readers pass over what they do not know
    }

    def words(one: Table) -> Iterator[str]:
        yield from one
        for key in ("properties", "$defs"):
            for below in one.get(key, {}).values():
                yield from words(below)
        for key in ("additionalProperties", "propertyNames", "items"):
            if isinstance(one.get(key), dict):
                yield from words(one[key])
        for branch in one.get("oneOf", []):
            yield from words(branch)

    assert set(words(schema.root())) <= known


def test_every_default_is_valid_where_it_stands() -> None:
    for document in (SMALLEST, FULL):
        assert reference_takes(schema.complete(document))
        assert ours_takes(schema.complete(document))


def test_completing_changes_nothing_that_is_said_and_nothing_the_second_time() -> None:
    completed = schema.complete(FULL)
    assert {path: at(completed, path) for path in PLACES if not isinstance(at(FULL, path), dict)} == {
        path: at(FULL, path) for path in PLACES if not isinstance(at(FULL, path), dict)
    }
    assert schema.complete(completed) == completed


def test_completing_leaves_the_original_and_the_schema_alone() -> None:
    before, text = copy.deepcopy(SMALLEST), json.dumps(schema.root())
    completed = schema.complete(SMALLEST)
    completed["apps"]["web"]["linked_files"].append("x")
    completed["tags"]["defaults"]["x"] = "y"
    assert before == SMALLEST
    assert json.dumps(schema.root()) == text


def test_the_defaults_are_those_the_documentation_promises() -> None:
    completed = schema.complete(SMALLEST)
    assert completed["tags"] == {
        "role": "Role",
        "environment": "Environment",
        "required": [],
        "within": "2m",
        "defaults": {},
    }
    assert completed["runit"] == {"service_dir": "/etc/service", "definitions": "/etc/sv"}
    web = completed["apps"]["web"]
    assert (web["keep_releases"], web["release_services"], web["services"]) == (5, "config/service", {})
    assert (web["linked_files"], web["linked_dirs"]) == ([], [])
    assert web["hooks"] == {"within": "10m"}
    assert web["limits"] == {"unpacked": "20GiB", "files": 1000000, "reserve": "64MiB", "within": "15m"}
    assert "user" not in web


def test_a_services_defaults_are_filled_in() -> None:
    service = schema.complete(FULL)["apps"]["web"]["services"]["sidekiq"]
    assert service == {
        "after": [],
        "env": {},
        "limits": {},
        "secrets": [],
        "stable_for": "2s",
        "stop_within": "10s",
        "check": {"command": ["bin/alive"], "within": "30s"},
    }


# --- our reading agrees with the real library ----------------------------------------------------------------------

JUNK: list[Any] = [
    *("", "*", "web", "Web_1-x", "-x", "a.b", "a.b.c", "a b", "a\nb", "ä", "x" * 63, "x" * 64, "x" * 256, "_index"),
    *("/", "/srv/web", "/srv/../etc", "/..", "/a/..", "/a..b/...", "srv", "../x", "./x", "a/./b", "a//b", "a/"),
    *(".", "..", "s3://b/k.json", "s3://b/k.tar.zst", "s3://b/k", "s3:///k.json", "s3://b/.json", "http://b/k.json"),
    *("http://h/", "https://", "ftp://h", "h:1", "h:123456", ":1", "h:", "h:x"),
    *("30s", "1.5h", "5 m", "5m", "-5m", "m", ".5s", "1d", "100ms", "512MiB", "20GB", "1KiB", "1kB", "7B", "1.5 GB"),
    *(0, 1, -1, 5, 0.5, -0.5, 10**30, True, False),
    *([], ["web"], [1], [""], [[]], ["a", "b"], [{}], [{"path": "a", "from": "/b"}], [{"path": "a"}]),
    *({}, {"a": "b"}, {"A_B": "c"}, {"a b": "c"}, {"type": "s3"}, {"type": "ebs"}, {"type": ["s3"]}),
    *({"http": "http://x"}, {"path": "a", "from": "b"}, {"web": {}}, {"": {}}, {"..": "x"}, {"prepare": []}),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    datetime.date(2026, 1, 1),
]


@pytest.mark.parametrize("document", [FULL, SMALLEST, schema.complete(SMALLEST), schema.complete(FULL)])
def test_both_take_what_is_good(document: Table) -> None:
    assert told(document) == []
    assert reference_takes(document)


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_both_agree_about_every_value_in_every_place(path: Path) -> None:
    document = around(path)
    for value in JUNK:
        changed = replaced(document, path, value)
        assert ours_takes(changed) == reference_takes(changed), f"{path} = {value!r}: {told(changed)}"


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_both_agree_when_something_is_missing_or_too_much(path: Path) -> None:
    document = around(path)
    shorter = copy.deepcopy(document)
    del at(shorter, path[:-1])[path[-1]]
    assert ours_takes(shorter) == reference_takes(shorter)
    if isinstance(at(FULL, path), dict):
        for key in ("Unknown", "un known", "name", "path", "PATH"):
            more: list[Any] = ["x", 1, {}, ["/x"]]
            for value in more:
                longer = replaced(document, (*path, key), value)
                assert ours_takes(longer) == reference_takes(longer), (path, key, value)


# JSON Schema calls 5.0 an integer, and its Python library thinks "5m\n" ends in "m". We do neither: see below.
SCALARS = st.one_of(
    st.sampled_from([item for item in JUNK if not isinstance(item, (dict, list))]),
    st.text(alphabet="azAZ09_-./:{}*\n é", max_size=12).filter(lambda text: not text.endswith("\n")),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer()),
    st.integers(),
    st.booleans(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["path", "from", "type", "url", "apps", "web", "x y", "http"]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=4))
@example(changes=[(("apps", "web", "source"), {"type": "s3", "url": "s3://b/{x}.tgz", "region": 1})])
def test_both_agree_about_whatever_comes(changes: list[tuple[Path, Any]]) -> None:
    document: Any = FULL
    for path, value in changes:
        try:
            document = replaced(document, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took that place away
    assert ours_takes(document) == reference_takes(document), told(document)


def test_a_float_is_no_whole_number() -> None:
    assert told(replaced(FULL, ("apps", "web", "keep_releases"), 5.0)) == [
        ("apps.web.keep_releases", "5.0 is not a whole number")
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "path",
    [
        ("tags", "within"),
        ("apps", "web", "services", "puma", "stop_within"),
        ("apps", "web", "services", "puma", "check", "within"),
    ],
)
def test_a_duration_is_a_number_one_can_wait_for(path: Path, value: float) -> None:
    """TOML has nan and inf; a deadline of nan is never over."""
    assert told(replaced(FULL, path, value))


@pytest.mark.parametrize(
    ("path", "key"),
    [(("apps",), "web\n"), (("apps", "web", "services", "puma", "env"), "FOO\n"), (("roles",), "web\n")],
)
def test_a_name_does_not_end_in_a_newline(path: Path, key: str) -> None:
    """Python's ``$`` matches before one; names become directories, files and variables."""
    document = copy.deepcopy(FULL)
    table = at(document, path)
    table[key] = copy.deepcopy(next(iter(table.values())))
    assert told(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apps", "web", "deploy_to"), "/srv/web\n"),
        (("apps", "web", "user"), "deploy\n"),
        (("apps", "web", "linked_dirs"), ["log\n"]),
        (("apps", "web", "source", "url"), "s3://b/web.json\n"),
    ],
)
def test_a_value_does_not_end_in_a_newline(path: Path, value: Any) -> None:
    assert told(replaced(FULL, path, value))


ABSOLUTE = 'an absolute path without ".." and control characters'
NAME = 'a word of at most 63 letters, digits, "_" and "-" that begins with a letter or digit'


# --- what it says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "where", "sentence"),
    [
        (("apps", "web", "keep_release"), 3, None, "is not a known key; did you mean 'keep_releases'?"),
        (("apps", "web", "sorce"), {}, None, "is not a known key; did you mean 'source'?"),
        (("app",), {}, None, "is not a known key; did you mean 'apps'?"),
        (("roles", "web", "zzz"), 1, None, "is not a known key; known: apps, services, traffic, volumes"),
        (("apps", "web", "source", "type"), "nsf", None, "'nsf' is not one of 's3', 'nfs', 'ebs', 'git', 'image'"),
        (
            ("apps", "web", "source"),
            {"url": "s3://b/x.tar"},
            "apps.web.source.type",
            "is missing; one of 's3', 'nfs', 'ebs', 'git', 'image'",
        ),
        (("apps", "web", "source"), "s3://b/x.tar", None, '"s3://b/x.tar" is not a table'),
        (("apps", "web", "keep_releases"), 0, None, "0 is less than 1"),
        (("apps", "web", "keep_releases"), True, None, "true is not a whole number"),
        (("apps", "web", "keep_releases"), "5", None, '"5" is not a whole number'),
        (("apps", "web", "deploy_to"), "srv", None, f'"srv" is not {ABSOLUTE}'),
        (("apps", "web", "deploy_to"), "/a/../b", None, f'"/a/../b" is not {ABSOLUTE}'),
        (("apps", "web", "linked_dirs"), "log", None, '"log" is not a list'),
        (("apps", "web", "linked_files"), [3], "apps.web.linked_files.[0]", "3 is not a string or a table"),
        (("apps", "web", "hooks", "prepare"), "make all", None, '"make all" is not a list'),
        (("apps", "web", "hooks", "prepare"), [], None, "is empty"),
        (("apps", "web", "hooks", "within"), "5 min", None, '"5 min" is not a duration such as "30s", "5m" or "1h"'),
        (("apps", "web", "hooks", "within"), [], None, "[] is not a number or a string"),
        (("apps", "web", "limits", "unpacked"), "2 GB", None, '"2 GB" is not a size such as "512MiB" or "20GB"'),
        (("apps", "web", "user"), "a b", None, '"a b" is not a user or group name'),
        (("roles", "web", "apps"), "web", None, '"web" is neither "*" nor a list'),
        (("apps", "web.b"), SMALLEST["apps"]["web"], None, f'is no good name: "web.b" is not {NAME}'),
    ],
)  # fmt: skip
def test_each_error_says_where_and_what(path: Path, value: Any, where: str | None, sentence: str) -> None:
    assert told(replaced(FULL, path, value)) == [(where or ".".join(map(str, path)), sentence)]


def test_everything_wrong_is_told_at_once() -> None:
    document = copy.deepcopy(FULL)
    del document["apps"]["web"]["deploy_to"]
    document["apps"]["web"]["keep_releases"] = 0
    document["apps"]["api"]["sorce"] = 1
    document["roles"]["web"] = {}
    document["tags"]["within"] = "soon"
    assert sorted(path for path, _ in told(document)) == [
        "apps.api.sorce",
        "apps.web.deploy_to",
        "apps.web.keep_releases",
        "roles.web.apps",
        "tags.within",
    ]


def test_an_empty_document_misses_its_apps() -> None:
    assert told({}) == [("apps", "is missing")]


def forms(one: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Table]]:
    """Every pattern of the schema, by where it is."""
    if "pattern" in one:
        yield ".".join(path), one
    for key in ("properties", "$defs"):
        for name, below in one.get(key, {}).items():
            yield from forms(below, (*path, name))
    for key in ("additionalProperties", "propertyNames", "items"):
        if isinstance(one.get(key), dict):
            yield from forms(one[key], (*path, key))
    for index, branch in enumerate(one.get("oneOf", [])):
        yield from forms(branch, (*path, str(index)))


FORMS = list(forms(schema.root()))


@pytest.mark.parametrize(("where", "one"), FORMS, ids=[where for where, _ in FORMS])
def test_every_pattern_says_what_it_wants_as_the_end_of_a_sentence(where: str, one: Table) -> None:
    refused = next(value for value in ("", "..\n", "-x\n", "x" * 300 + "\n") if list(schema.check(value, one)))
    ((_, sentence),) = schema.check(refused, one)
    assert sentence.endswith(f" is not {one['form']}"), where
    # Nothing that begins or ends like a sentence of its own, such as the description of a key.
    assert one["form"][0].islower() or one["form"][0] in "\"'" or one["form"].startswith("SERVICE"), one["form"]
    assert not one["form"].endswith((".", ":", ";")), one["form"]
    # What is quoted as an example fits.
    for quoted in re.findall(r'(?:such as|from|or) "?([a-z0-9/:.-]*[0-9][a-zA-Z0-9/:.-]*|/dev/sd[a-z])"?', one["form"]):
        assert list(schema.check(quoted, one)) == [], quoted


def test_a_long_value_is_not_repeated_whole() -> None:
    ((_, sentence),) = told(replaced(FULL, ("apps", "web", "user"), "x" * 1000))
    assert len(sentence) < 120


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("wev", ["web", "api"], "; did you mean 'web'?"),
        ("zzz", ["web", "api"], "; known: api, web"),
        ("zzz", [], ""),
    ],
)
def test_suggestions(word: str, known: list[str], said: str) -> None:
    assert schema.suggestion(word, known) == said


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("wev", ["web", "api"], "; did you mean 'web'? known: api, web"),
        ("zzz", ["web", "api"], "; known: api, web"),
        ("zzz", [], ""),
    ],
)
def test_choices_name_what_there_is_even_for_a_near_miss(word: str, known: list[str], said: str) -> None:
    assert schema.choices(word, known) == said
