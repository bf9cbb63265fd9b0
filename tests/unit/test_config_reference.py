"""The list of keys agrees with the schema and with what a configuration may hold."""

from __future__ import annotations

from bootagent.config import coordinates, reference


def test_every_key_says_what_it_means() -> None:
    keys = reference.all_keys()
    assert len(keys) > 100
    assert [key.path for key in keys if not key.meaning] == []
    assert len({key.path for key in keys}) == len(keys)


def test_defaults_and_kinds_of_sources() -> None:
    found = {key.path: key for key in reference.all_keys()}
    assert found["apps.NAME.keep_releases"].default == "5"
    assert found["apps.NAME.source(git).ref"].default == '"HEAD"'
    assert found["apps.NAME.source(s3).url"].default == ""
    assert found["roles.NAME.volumes.NAME.volume.size"].meaning.startswith("Whole GiB")
    assert "apps.NAME.source(s3).type" not in found


def test_keys_in_which_values_are_filled_in_are_marked() -> None:
    found = {key.path for key in reference.all_keys() if key.filled_in}
    for path in (
        "apps.NAME.deploy_to",
        "apps.NAME.linked_files",
        "apps.NAME.source(ebs).snapshot",
        "apps.NAME.source(nfs).path",
        "apps.NAME.source(s3).fallback(image).path",
        "apps.NAME.environment.layers",
        "apps.NAME.secrets",
        "apps.NAME.services.NAME.env",
        "apps.NAME.services.NAME.secrets",
        "apps.NAME.services.NAME.check.http",
        "roles.NAME.volumes.NAME.tags",
        "roles.NAME.traffic.elastic_ip.tags",
        "roles.NAME.traffic.target_groups",
        "lifecycle.diagnosis",
    ):
        assert path in found, path
    for path in ("lifecycle.launching", "apps.NAME.source(s3).fallback", "apps.NAME.user", "apps.NAME.hooks.prepare"):
        assert path not in found, path
    # Each place where values are filled in is told of by some key.
    told = {path.replace("NAME", "*").split(".")[-1].partition("(")[0] for path in found}
    assert {next(part for part in reversed(one) if part != "*") for one in coordinates.EVERYWHERE} - told <= {
        "from",
        "group",
    }
