"""The list of keys agrees with the schema and with what a configuration may hold."""

from __future__ import annotations

from bootagent.config import reference


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
