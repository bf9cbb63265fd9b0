"""Sources, mounts and volumes in a configuration: what they mean, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootagent.config import document, resolve
from bootagent.config.model import Config, DataVolume, EbsSource, GitSource, ImageSource, NfsSource, S3Source
from bootagent.ebs.kind import VolumeKind
from bootagent.errors import ConfigError

TAGS = {"Role": "web", "Environment": "staging", "Server": "files-1"}
ROLE = '[roles.web]\napps = "*"\n'


def app(name: str, source: str, deploy_to: str = "", more: str = "") -> str:
    return f'[apps.{name}]\ndeploy_to = "{deploy_to or f"/srv/{name}"}"\nsource = {{ {source} }}\n{more}\n'


def config(text: str, place: Path) -> Config:
    file = place / "config.toml"
    file.write_text(text)
    found = resolve.validate(document.load([file]))
    assert resolve.required_tags(found, {"Role": "web"}) <= set(TAGS)
    return resolve.resolve(found, {}, TAGS)


def told(text: str, place: Path) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as refused:
        config(text, place)
    return [(problem.key, problem.sentence) for problem in refused.value.problems]


def test_nfs_in_place(tmp_path: Path) -> None:
    source = 'type = "nfs", server = "{tag:Server}.internal", export = "/apps", mountpoint = "/apps/"'
    (found,) = config(app("web", source, "/apps/worker") + ROLE, tmp_path).apps
    assert found.source == NfsSource("files-1.internal", "/apps", "/apps", (), False, "current", 120.0)
    assert (found.in_place, found.fallback) == (True, None)


def test_nfs_copied(tmp_path: Path) -> None:
    source = 'type = "nfs", server = "n", export = "/e", mountpoint = "/mnt/e", copy = true, path = "web/current"'
    (found,) = config(app("web", source + ', options = ["rw"], within = "30s"') + ROLE, tmp_path).apps
    assert found.source == NfsSource("n", "/e", "/mnt/e", ("rw",), True, "web/current", 30.0)
    assert not found.in_place


def test_ebs(tmp_path: Path) -> None:
    source = (
        'type = "ebs", snapshot = { Name = "shop {environment}", App = "shop" }, mountpoint = "/cp", '
        'volume = { iops = 4000, initialization_rate = 200, size = "1500MiB" }'
    )
    (found,) = config(app("shop", source) + ROLE, tmp_path).apps
    assert found.source == EbsSource(
        snapshot=(("App", "shop"), ("Name", "shop staging")),
        owner="self",
        holds="deploy_to",
        mountpoint="/cp",
        bind=True,
        options=("noatime", "nosuid", "nodev"),
        device="/dev/sdf",
        volume=VolumeKind(iops=4000, initialization_rate=200, size_gib=2),
        within=600.0,
    )
    assert found.in_place


def test_ebs_is_mounted_at_deploy_to_itself_unless_told_otherwise(tmp_path: Path) -> None:
    (found,) = config(app("shop", 'type = "ebs", snapshot = { Name = "shop" }') + ROLE, tmp_path).apps
    assert isinstance(found.source, EbsSource)
    assert (found.source.mountpoint, found.source.bind) == ("/srv/shop", False)


def test_a_release_on_a_volume_of_its_own_is_staged(tmp_path: Path) -> None:
    (found,) = config(
        app("shop", 'type = "ebs", snapshot = { Name = "shop" }, holds = "release"') + ROLE, tmp_path
    ).apps
    assert not found.in_place


def test_git_and_image_and_fallbacks(tmp_path: Path) -> None:
    text = (
        app("blog", 'type = "git", url = "git@h:b.git", ref = "{environment}", key = "ssm:/k/{environment}"')
        + app("shop", 'type = "image"')
        + app("wiki", 'type = "image", path = "/opt/wiki"')
        + app("web", 'type = "s3", url = "s3://b/web.json", fallback = "image"')
        + app("api", 'type = "s3", url = "s3://b/api.json", fallback = { type = "image", path = "/opt/api" }')
    )
    found = {one.name: one for one in config(text + ROLE, tmp_path).apps}
    known_hosts = "/etc/ssh/ssh_known_hosts"
    assert found["blog"].source == GitSource("git@h:b.git", "staging", "ssm:/k/staging", known_hosts, False)
    assert found["shop"].source == ImageSource(None)
    assert found["wiki"].source == ImageSource("/opt/wiki")
    assert found["web"].source == S3Source("b", "web.json", None)
    assert found["web"].fallback == ImageSource(None)
    assert found["api"].fallback == ImageSource("/opt/api")


def test_a_data_volume_of_the_instance(tmp_path: Path) -> None:
    volume = '[roles.web.volumes.data]\nmountpoint = "/data"\nvolume = { size = "10GiB" }\n'
    (found,) = config("[apps]\n[roles.web]\napps = []\n" + volume, tmp_path).volumes
    assert found == DataVolume(
        name="data",
        mountpoint="/data",
        tags=(),
        snapshot=(),
        owner="self",
        filesystem="xfs",
        options=("noatime", "nosuid", "nodev"),
        user=None,
        group=None,
        device="/dev/sdf",
        volume=VolumeKind(size_gib=10),
        delete_on_termination=True,
        within=300.0,
    )


def test_a_data_volume_that_is_found_by_tags_stays_when_its_instance_goes(tmp_path: Path) -> None:
    volume = '[roles.web.volumes.data]\nmountpoint = "/{environment}"\ntags = { Name = "db {environment}" }\n'
    (found,) = config("[apps]\n[roles.web]\napps = []\n" + volume, tmp_path).volumes
    assert (found.mountpoint, found.tags) == ("/staging", (("Name", "db staging"),))
    assert not found.delete_on_termination


@pytest.mark.parametrize(
    ("source", "deploy_to", "more", "key", "sentence"),
    [
        (
            'type = "nfs", server = "n", export = "/e", mountpoint = "/apps"',
            "/srv/x",
            "",
            "deploy_to",
            "'/srv/x' is not below the mountpoint '/apps'; put it there, or set copy",
        ),
        (
            'type = "nfs", server = "n", export = "/e", mountpoint = "/srv", copy = true',
            "/srv/x",
            "",
            "source.mountpoint",
            "'/srv' collides with deploy_to, which the copies go to",
        ),
        (
            'type = "nfs", server = "n", export = "/e", mountpoint = "/"',
            "/srv/x",
            "",
            "source.mountpoint",
            "is the root directory",
        ),
        (
            'type = "nfs", server = "n", export = "/e", mountpoint = "/srv", path = "x/current"',
            "/srv/x",
            "",
            "source.path",
            "goes with copy; in place it is current in deploy_to",
        ),
        (
            'type = "nfs", server = "n", export = "/e", mountpoint = "/srv"',
            "/srv/x",
            'linked_dirs = ["log"]',
            "linked_dirs",
            "cannot be: the release is read in place, and nothing is linked into it",
        ),
        (
            'type = "nfs", server = "n", export = "/e", mountpoint = "/srv"',
            "/srv/x",
            'hooks = { prepare = ["x"] }',
            "hooks.prepare",
            "cannot be: the release is read in place, and nothing is prepared in it",
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, fallback = "image"',
            "/srv/x",
            "",
            "source.fallback",
            'cannot be, where the release is read in place; name a tree: { type = "image", path = … }',
        ),
        ('type = "ebs", snapshot = {}', "/srv/x", "", "source.snapshot", "is empty: any snapshot would do"),
        (
            'type = "ebs", snapshot = { N = "x" }, holds = "release", mountpoint = "/cp"',
            "/srv/x",
            "",
            "source.mountpoint",
            'goes with holds = "deploy_to"; a release is mounted among the releases',
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, mountpoint = "/srv"',
            "/srv/x",
            "",
            "source.bind",
            "'/srv' and '/srv/x' are one in the other; set bind = false",
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, mountpoint = "/cp", bind = false',
            "/srv/x",
            "",
            "deploy_to",
            "'/srv/x' is not below the mountpoint '/cp', and bind is false",
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, volume = { type = "gp2", iops = 3000 }',
            "/srv/x",
            "",
            "source.volume.iops",
            "is for gp3, io1, io2, not for gp2",
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, volume = { type = "io2" }',
            "/srv/x",
            "",
            "source.volume.iops",
            "is missing: io2 wants a number",
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, volume = { size = "10MiB" }',
            "/srv/x",
            "",
            "source.volume.size",
            "'10MiB' is less than 1GiB",
        ),
        (
            'type = "ebs", snapshot = { N = "x" }, volume = { encrypted = false, kms_key = "k" }',
            "/srv/x",
            "",
            "source.volume.kms_key",
            "is given, and encrypted is false",
        ),
        (
            'type = "git", url = "https://me:secret@h/x.git"',
            "/srv/x",
            "",
            "source.url",
            "has a password in it, which everyone who reads this file could use; use a key",
        ),
    ],
)
def test_what_does_not_fit_is_told(
    source: str, deploy_to: str, more: str, key: str, sentence: str, tmp_path: Path
) -> None:
    assert told(app("x", source, deploy_to, more) + ROLE, tmp_path) == [(f"apps.x.{key}", sentence)]


@pytest.mark.parametrize(
    ("volumes", "key", "sentence"),
    [
        (
            '[roles.web.volumes.a]\nmountpoint = "/a"\n',
            "a",
            "needs tags to find one by, a snapshot to make one from, or a size for a blank one",
        ),
        (
            '[roles.web.volumes.a]\nmountpoint = "/"\ntags = { N = "a" }\n',
            "a.mountpoint",
            "is the root directory",
        ),
        (
            '[roles.web.volumes.a]\nmountpoint = "/a"\ntags = { N = "a" }\n'
            '[roles.web.volumes.b]\nmountpoint = "/a/b"\ntags = { N = "b" }\n',
            "b.mountpoint",
            "'/a/b' collides with '/a' of volume 'a'",
        ),
        (
            '[roles.web.volumes.a]\nmountpoint = "/apps"\ntags = { N = "a" }\n',
            "a.mountpoint",
            "'/apps' collides with '/apps' of app 'web'",
        ),
    ],
)
def test_volumes_that_do_not_fit_are_told(volumes: str, key: str, sentence: str, tmp_path: Path) -> None:
    web = app("web", 'type = "nfs", server = "n", export = "/e", mountpoint = "/apps"', "/apps/web")
    assert told(web + ROLE + volumes, tmp_path) == [(f"roles.web.volumes.{key}", sentence)]


DATA = '[roles.web.volumes.up]\nmountpoint = "{}"\ntags = {{ N = "up" }}\n'
IN_S3 = 'type = "s3", url = "s3://b/web.json"'
BY_RELEASE = 'type = "ebs", snapshot = { N = "x" }, holds = "release"'
RENAMES = "where app 'web' lets {!r} rename directories; mount it elsewhere, and link to it by hooks.prepare"


@pytest.mark.parametrize(
    ("source", "more", "mountpoint", "sentence"),
    [
        (IN_S3, "", "/srv//web/shared/uploads/", f"is in /srv/web, {RENAMES.format('nobody')}"),
        (IN_S3, 'user = "deploy"', "/srv/web/shared", f"is in /srv/web, {RENAMES.format('deploy')}"),
        (IN_S3, 'services.s = { user = "web" }', "/srv/web/x", f"is in /srv/web, {RENAMES.format('web')}"),
        (BY_RELEASE, "", "/srv/web/shared/uploads", f"is in /srv/web/shared, {RENAMES.format('nobody')}"),
        (
            'type = "ebs", snapshot = { N = "x" }, mountpoint = "/cp"',
            "",
            "/srv/web/shared/uploads",
            "is in /srv/web, where app 'web' has a volume of its own; mount it elsewhere",
        ),
    ],
)
def test_nothing_is_mounted_where_an_apps_user_could_move_it(
    source: str, more: str, mountpoint: str, sentence: str, tmp_path: Path
) -> None:
    text = app("web", source, more=more) + ROLE + DATA.format(mountpoint)
    assert told(text, tmp_path) == [("roles.web.volumes.up.mountpoint", f"{mountpoint!r} {sentence}")]


@pytest.mark.parametrize(
    ("source", "more", "mountpoint"),
    [
        (IN_S3, "", "/srv/web"),
        (IN_S3, "", "/srv"),
        (IN_S3, "", "/srv/web2"),
        (IN_S3, 'user = "root"', "/srv/web/shared/uploads"),
        (BY_RELEASE, "", "/srv/web/data"),
        (BY_RELEASE, "", "/srv/web/shared"),
        ('type = "image", copy = false', "", "/srv/web/data"),
    ],
)
def test_what_only_root_can_move_may_be_mounted_at(source: str, more: str, mountpoint: str, tmp_path: Path) -> None:
    (found,) = config(app("web", source, more=more) + ROLE + DATA.format(mountpoint), tmp_path).volumes
    assert found.mountpoint == mountpoint


def test_nor_is_another_apps_mount_where_an_apps_user_could_move_it(tmp_path: Path) -> None:
    other = 'type = "nfs", server = "n", export = "/e", mountpoint = "/srv/web/shared/e", copy = true'
    sentence = f"'api' mounts '/srv/web/shared/e', which is in /srv/web, {RENAMES.format('nobody')}"
    assert told(app("web", IN_S3) + app("api", other) + ROLE, tmp_path) == [("roles.web.apps", sentence)]


def test_two_apps_may_read_from_one_mount_but_not_from_two_at_one_place(tmp_path: Path) -> None:
    mount = 'type = "nfs", server = "n", export = "{}", mountpoint = "/apps"'
    one = app("one", mount.format("/e"), "/apps/one")
    assert len(config(one + app("two", mount.format("/e"), "/apps/two") + ROLE, tmp_path).apps) == 2
    wrong = one + app("two", mount.format("/f"), "/apps/two") + ROLE
    assert told(wrong, tmp_path) == [("roles.web.apps", "'two' mounts '/apps', which collides with '/apps' of 'one'")]
