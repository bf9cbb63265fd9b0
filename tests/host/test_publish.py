"""Publishing from real git work trees to a simulated S3, and unpacking what comes out with real tools."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bootagent import aws, pointer
from bootagent.errors import EXIT_USAGE, BootagentError, CommandError, UsageError
from bootagent.machine import Machine, Note, Transfer
from bootagent.publish import Published, publish
from bootagent.pull import bundle as pulling
from bootagent.sandbox.cloud import Cloud

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

URL = "s3://deploys/web/production.json"
NOT_UTF8 = os.fsdecode(b"not-\xff-utf8")


class Repo:
    """A git work tree to play with; everything about it is fixed, so that a commit has one id everywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str | Path) -> str:
        """Run git here; returns what it printed."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.path.parent),
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _IDENTITY.items()},
        }
        ran = subprocess.run(
            ["git", *words], cwd=self.path, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return ran.stdout.strip()

    def write(self, name: str, content: bytes | str = b"", mode: int = 0o644) -> Path:
        """Write a file, with its parents."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def commit(self, message: str = "change") -> str:
        """Commit everything; returns the id."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")


_IDENTITY = {"NAME": "A", "EMAIL": "a@example.com", "DATE": "2024-05-06T07:08:09+0200"}


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A work tree with one commit."""
    made = Repo(tmp_path / "repo")
    made.write("app.rb", "puts 1\n")
    made.write("bin/start", "#!/bin/sh\n", mode=0o755)
    made.commit("first")
    return made


@pytest.fixture
def s3(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> S3Client:
    """S3 as publishing finds it, with the versioned bucket ``deploys``."""
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    aws._client.cache_clear()
    cloud.create_bucket("deploys")
    return cloud.api.s3(cloud.region)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where publishing keeps its temporary files, none of which may stay."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


Publish = Callable[..., Published]


@pytest.fixture
def publishing(s3: S3Client, cloud: Cloud, repo: Repo) -> Publish:
    """Publishes ``repo`` to URL, if nothing else is said."""

    def run(machine: Machine | None = None, **options: object) -> Published:
        given = {"url": URL, "repo": repo.path, "region": cloud.region, **options}
        return publish(machine or Machine(), **given)  # type: ignore[arg-type]

    return run


def content_of(s3: S3Client, url: str) -> bytes:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def unpacked(archive: bytes, into: Path) -> Path:
    """Unpack with the tools anyone would use."""
    into.mkdir()
    tool = "gzip" if archive.startswith(b"\x1f\x8b") else "zstd"
    plain = subprocess.run([tool, "-dc"], input=archive, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-xp", "-C", into], input=plain, check=True)
    return into


def tree_of(top: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below ``top``: mode, and content or target."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        mode = path.lstat().st_mode
        if name.split("/")[0] == ".git":
            continue
        if path.is_symlink():
            found[name] = (stat.S_IFMT(mode), os.fsencode(path.readlink()))
        else:
            found[name] = (mode, path.read_bytes() if path.is_file() else b"")
    return found


# --- what is published ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zst", "gz"])
def test_what_is_committed_arrives(
    repo: Repo, s3: S3Client, cloud: Cloud, publishing: Publish, tmp_path: Path, compression: str
) -> None:
    repo.write("empty")
    repo.write("grüße/日本語 mit Leerzeichen.txt", "hallo")
    repo.write(NOT_UTF8, "bytes")
    repo.write("deep/" + "/".join(["directory-with-a-long-name"] * 12) + "/file", "far down")
    repo.write("n" * 200, "a long name")
    repo.write("random", os.urandom(3_000_000))
    repo.write("-rf", "a name like an option")
    (repo.path / "current").symlink_to("bin")
    (repo.path / "bin/self").symlink_to("../bin/start")
    (repo.path / "broken").symlink_to("nowhere/at all")
    (repo.path / "long").symlink_to("nowhere/" + "x" * 150)
    commit = repo.commit()

    published = publishing(compression=compression)

    named = pointer.parse(content_of(s3, URL), URL)
    assert named == published.pointer
    assert named.revision == commit
    assert published.pointer_url == URL
    assert published.bundle_url == f"s3://deploys/{named.bundle}"
    assert named.bundle == f"web/production/bundles/{commit[:12]}-{named.sha256[:16]}.tar.{compression}"
    assert (published.uploaded, published.unchanged) == (True, False)
    archive = content_of(s3, published.bundle_url)
    assert len(archive) == named.size

    wanted = tree_of(repo.path)
    assert len(wanted) > 20
    assert tree_of(unpacked(archive, tmp_path / "by tar")) == wanted
    assert named.files == len(wanted)
    assert named.unpacked_size == sum(len(content) for mode, content in wanted.values() if stat.S_ISREG(mode))

    pulled = tmp_path / "pulled"
    pulled.mkdir()
    pulling.pull(
        Machine(),
        pulling.Bundle(
            "deploys",
            named.bundle,
            cloud.region,
            named.size,
            version_id=named.version_id,
            sha256=named.sha256,
            unpacked_size=named.unpacked_size,
            files=named.files,
        ),
        pulled,
        limits=pulling.Limits(max_bytes=1 << 30, max_files=10_000, reserve_bytes=0),
        identity=None,
        within=60,
        label="pull",
    )
    assert tree_of(pulled) == wanted


def test_git_s_own_attributes_are_honoured(repo: Repo, s3: S3Client, publishing: Publish, tmp_path: Path) -> None:
    repo.write(".gitattributes", "spec export-ignore\nVERSION export-subst\n")
    repo.write("spec/app_spec.rb")
    repo.write("VERSION", "$Format:%H$")
    commit = repo.commit()
    found = tree_of(unpacked(content_of(s3, publishing().bundle_url), tmp_path / "out"))
    assert "spec" not in found
    assert found["VERSION"][1].decode() == commit


def test_a_ref_is_published_whatever_lies_around(repo: Repo, s3: S3Client, publishing: Publish, tmp_path: Path) -> None:
    first = repo.git("rev-parse", "HEAD")
    repo.git("tag", "--annotate", "v1", "--message", "one")
    repo.write("app.rb", "puts 2\n")
    repo.commit()
    repo.write("app.rb", "puts 3, not committed\n")
    for ref in ("v1", first, first[:10], "main~1", "HEAD~1"):
        published = publishing(ref=ref)
        assert published.pointer.revision == first
    found = tree_of(unpacked(content_of(s3, published.bundle_url), tmp_path / "out"))
    assert found["app.rb"][1] == b"puts 1\n"


def test_ignored_files_do_not_matter(repo: Repo, publishing: Publish) -> None:
    repo.write(".gitignore", "*.log\n")
    repo.commit()
    repo.write("server.log")
    assert publishing().uploaded


def test_the_users_own_ignored_files_do_not_matter(
    repo: Repo, publishing: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ignore").write_text(".idea/\n")
    (tmp_path / ".gitconfig").write_text(f"[core]\n\texcludesFile = {tmp_path}/ignore\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    repo.write(".idea/workspace.xml")
    assert publishing().uploaded


@pytest.mark.parametrize("compression", ["zst", "gz"])
def test_one_commit_is_the_same_bytes_for_everyone(
    repo: Repo, s3: S3Client, publishing: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    repo.write("text.txt", "a line\n" * 1000)
    repo.write("data", os.urandom(1_000_000) * 20)  # enough for more than one job of zstd's threads
    repo.commit()
    first = publishing(compression=compression)

    # Another clone, elsewhere, of somebody whose every setting would make the archive another one.
    other = tmp_path / "somewhere" / "else"
    repo.git("clone", "--quiet", repo.path, other)
    (other / ".git/info").mkdir(exist_ok=True)
    (other / ".git/info/attributes").write_text("app.rb export-ignore\n*.txt eol=crlf\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / "attributes").write_text("text.txt export-ignore\n*.rb filter=shout\n")
    (home / ".gitconfig").write_text(
        "[core]\n\tautocrlf = true\n\teol = crlf\n\tattributesFile = ~/attributes\n"
        '[tar]\n\tumask = user\n[filter "shout"]\n\tsmudge = tr a-z A-Z\n'
        '[tar "tar"]\n\tcommand = gzip\n'
    )
    for name, value in {
        "HOME": str(home),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "de_DE.UTF-8",
        "ZSTD_NBTHREADS": "1",
        "ZSTD_CLEVEL": "1",
        "GZIP": "-1",
        "GIT_DIR": str(tmp_path / "nowhere"),
        "GIT_INDEX_FILE": str(tmp_path / "nowhere"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    before = os.umask(0o077)
    try:
        # Its HEAD by name: to such settings the work tree itself is not clean.
        second = publishing(
            compression=compression, repo=other, ref=first.pointer.revision, url="s3://deploys/two.json"
        )
    finally:
        os.umask(before)
    assert second.pointer.sha256 == first.pointer.sha256
    assert content_of(s3, second.bundle_url) == content_of(s3, first.bundle_url)


def test_the_number_of_cores_makes_no_difference(repo: Repo, publishing: Publish) -> None:
    repo.write("data", os.urandom(1_000_000) * 40)
    repo.commit()
    cores = os.sched_getaffinity(0)
    found: list[str] = []
    try:
        for some in ({min(cores)}, cores):
            os.sched_setaffinity(0, some)
            found.append(publishing(url=f"s3://deploys/on-{len(some)}-{len(found)}.json").pointer.sha256)
    finally:
        os.sched_setaffinity(0, cores)
    assert found[0] == found[1]


def test_a_replaced_object_is_not_believed(repo: Repo, s3: S3Client, publishing: Publish, tmp_path: Path) -> None:
    good = repo.git("rev-parse", "HEAD")
    repo.write("app.rb", "puts 'someone else'\n")
    bad = repo.commit()
    repo.git("reset", "--quiet", "--hard", good)
    repo.git("replace", good, bad)
    published = publishing(ref=good)
    found = tree_of(unpacked(content_of(s3, published.bundle_url), tmp_path / "out"))
    assert found["app.rb"][1] == b"puts 1\n"


def test_a_shallow_clone_and_a_linked_work_tree_publish_too(repo: Repo, publishing: Publish, tmp_path: Path) -> None:
    repo.write("app.rb", "puts 2\n")
    repo.commit()
    wanted = publishing()
    repo.git("clone", "--quiet", "--depth=1", f"file://{repo.path}", tmp_path / "shallow")
    repo.git("worktree", "add", "--quiet", "--detach", tmp_path / "linked")
    for name in ("shallow", "linked"):
        assert publishing(repo=tmp_path / name).unchanged, name
    assert wanted.uploaded


# --- what is refused -----------------------------------------------------------------------------------------


def modified(repo: Repo) -> None:
    repo.write("app.rb", "puts 2\n")


def staged(repo: Repo) -> None:
    repo.write("app.rb", "puts 2\n")
    repo.git("add", "app.rb")


def untracked(repo: Repo) -> None:
    repo.write("new.rb")


def deleted(repo: Repo) -> None:
    (repo.path / "app.rb").unlink()


def renamed(repo: Repo) -> None:
    repo.git("mv", "app.rb", "application.rb")


def chmodded(repo: Repo) -> None:
    (repo.path / "app.rb").chmod(0o755)


def hidden_by_configuration(repo: Repo) -> None:
    repo.git("config", "status.showUntrackedFiles", "no")
    repo.write("new.rb")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (modified, "app.rb (modified)"),
        (staged, "app.rb (staged)"),
        (untracked, "new.rb (untracked)"),
        (deleted, "app.rb (deleted)"),
        (renamed, "application.rb (staged)"),
        (chmodded, "app.rb (modified)"),
        (hidden_by_configuration, "new.rb (untracked)"),
    ],
)
def test_a_dirty_work_tree_is_refused(
    repo: Repo, cloud: Cloud, publishing: Publish, spoil: Callable[[Repo], None], named: str
) -> None:
    spoil(repo)
    with pytest.raises(UsageError) as caught:
        publishing()
    assert str(caught.value) == (
        f"{repo.path} holds what its HEAD does not: {named}"
        " (commit, stash or ignore it, or publish a commit by its name with --ref)"
    )
    assert caught.value.exit_code == EXIT_USAGE
    assert cloud.api.calls == []


def test_only_the_first_few_files_are_named(repo: Repo, publishing: Publish) -> None:
    for number in range(9):
        repo.write(f"new{number}")
    with pytest.raises(UsageError, match=r"new0 \(untracked\), .*, new4 \(untracked\) and 4 more \("):
        publishing()


def submodule(repo: Repo) -> None:
    commit = repo.git("rev-parse", "HEAD")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{commit},vendor/lib")
    (repo.path / "vendor/lib").mkdir(parents=True)


def git_lfs(repo: Repo) -> None:
    repo.write("logo.png", "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n")


def git_crypt(repo: Repo) -> None:
    repo.write("secrets.yml", b"\0GITCRYPT\0" + os.urandom(500))


def absolute_link(repo: Repo) -> None:
    (repo.path / "log").symlink_to("/var/log/app")


def link_out(repo: Repo) -> None:
    (repo.path / "bin/log").symlink_to("../../log")


def control_character(repo: Repo) -> None:
    repo.write("Icon\r")


@pytest.mark.parametrize(
    ("spoil", "name", "sentence"),
    [
        (submodule, "vendor/lib", "vendor/lib is a submodule, which an archive of the commit leaves empty"),
        (git_lfs, "logo.png", "logo.png is in the commit as what git-lfs puts in place of its content"),
        (git_crypt, "secrets.yml", "secrets.yml is in the commit as what git-crypt puts in place of its content"),
        (absolute_link, "log", "log is a link to /var/log/app, outside the release"),
        (link_out, "bin/log", r"bin/log is a link to \.\./\.\./log, outside the release"),
        (control_character, "Icon?", r"'Icon\\r' has a control character in its name"),
    ],
)
def test_what_no_instance_could_use_is_refused_unless_left_out(
    repo: Repo, s3: S3Client, publishing: Publish, spoil: Callable[[Repo], None], name: str, sentence: str
) -> None:
    spoil(repo)
    repo.git("add", "--all", "--ignore-errors", ":!vendor")
    repo.git("commit", "--quiet", "--message", "spoilt")
    with pytest.raises(UsageError, match=sentence):
        publishing()
    assert "Contents" not in s3.list_objects_v2(Bucket="deploys")
    repo.write(".gitattributes", f"{name} export-ignore\n")
    repo.git("add", ".gitattributes")
    repo.git("commit", "--quiet", "--message", "left out")
    assert publishing().uploaded


def test_a_commit_of_nothing_is_refused(repo: Repo, publishing: Publish) -> None:
    repo.git("rm", "--quiet", "-r", ".")
    repo.commit()
    with pytest.raises(UsageError, match="holds no file to publish"):
        publishing()


@pytest.mark.parametrize("ref", ["nothing", "", "-x", "--help", "HEAD:app.rb", "main main", "main\nHEAD"])
def test_a_ref_that_names_no_commit(publishing: Publish, ref: str) -> None:
    with pytest.raises(UsageError, match=r"has no commit|cannot be a git ref"):
        publishing(ref=ref)


def test_a_repository_without_a_commit(publishing: Publish, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no commit 'HEAD'.*\(commit first\)"):
        publishing(repo=Repo(tmp_path / "young").path)


def test_a_directory_that_is_no_work_tree(repo: Repo, publishing: Publish, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    repo.git("clone", "--quiet", "--bare", repo.path, tmp_path / "bare.git")
    for name in ("plain", "bare.git"):
        with pytest.raises(UsageError, match=f"{name} is not a git work tree: fatal: "):
            publishing(repo=tmp_path / name)
    with pytest.raises(UsageError, match="missing is not a directory"):
        publishing(repo=tmp_path / "missing")


def test_a_part_of_a_work_tree(repo: Repo, publishing: Publish) -> None:
    with pytest.raises(UsageError, match=rf"bin is only a part of the git work tree .*--repo {repo.path}\)"):
        publishing(repo=repo.path / "bin")


def test_a_link_to_a_work_tree_is_one(repo: Repo, publishing: Publish, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repo.path)
    assert publishing(repo=tmp_path / "link").uploaded


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_work_tree_takes_the_consent_git_asks_for(
    repo: Repo, publishing: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(repo.path, 12345, 12345)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(UsageError, match=r"safe\.directory"):
        publishing()
    (tmp_path / ".gitconfig").write_text(f"[safe]\n\tdirectory = {repo.path}\n")
    assert publishing().uploaded


def test_an_unknown_compression(publishing: Publish) -> None:
    with pytest.raises(UsageError, match=r"unknown compression 'bz2' \(use zst or gz\)"):
        publishing(compression="bz2")


# --- what goes wrong -----------------------------------------------------------------------------------------


def fake_tool(tmp_path: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tools"
    place.mkdir()
    (place / name).write_text(f"#!/bin/sh\n{script}\n")
    (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "script",
    ["echo 'No space left on device' >&2; exit 28", "cat >/dev/null; echo 'No space left on device' >&2; exit 28"],
    ids=["at once", "at the end"],
)
def test_a_compressor_that_fails(
    repo: Repo, s3: S3Client, publishing: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    repo.write("data", os.urandom(5_000_000))
    repo.commit()
    fake_tool(tmp_path, "zstd", script, monkeypatch)
    with pytest.raises(CommandError, match=r"zstd failed with exit code 28: No space left on device"):
        publishing()
    assert "Contents" not in s3.list_objects_v2(Bucket="deploys")


def test_a_compressor_that_is_missing(publishing: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools").mkdir()
    git = shutil.which("git")
    assert git
    (tmp_path / "tools/git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    with pytest.raises(CommandError, match=r"cannot start zstd.*install zstd"):
        publishing()


def test_a_damaged_repository(repo: Repo, s3: S3Client, publishing: Publish) -> None:
    blob = repo.git("rev-parse", "HEAD:app.rb")
    (repo.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(CommandError, match=r"git archive failed with exit code .*cannot read"):
        publishing()
    assert "Contents" not in s3.list_objects_v2(Bucket="deploys")


def test_an_interrupted_publication_leaves_nothing_behind(repo: Repo, s3: S3Client, publishing: Publish) -> None:
    repo.write("data", os.urandom(5_000_000))
    repo.commit()

    def interrupt(event: Transfer | Note) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publishing(Machine(listener=interrupt))
    assert "Contents" not in s3.list_objects_v2(Bucket="deploys")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    assert not {"git", "zstd"}.intersection(commands)


def test_throttling_is_waited_out(cloud: Cloud, publishing: Publish) -> None:
    for action in ("GetObject", "HeadObject", "PutObject"):
        cloud.api.fail("s3", action, code="SlowDown", status=503, times=2)
    assert publishing().uploaded


# --- again, and at the same time -----------------------------------------------------------------------------


def test_publishing_again_changes_nothing(cloud: Cloud, s3: S3Client, publishing: Publish) -> None:
    first = publishing()
    document = content_of(s3, URL)
    cloud.api.forget_calls()
    again = publishing()
    assert again == dataclasses.replace(first, uploaded=False, unchanged=True)
    assert content_of(s3, URL) == document
    assert {call.action for call in cloud.api.calls} == {"GetObject", "HeadObject"}


def test_publishing_an_older_commit_moves_the_pointer_back_without_an_upload(repo: Repo, publishing: Publish) -> None:
    first = publishing()
    repo.write("app.rb", "puts 2\n")
    repo.commit()
    assert publishing().uploaded
    back = publishing(ref="HEAD~1")
    assert (back.uploaded, back.unchanged) == (False, False)
    assert dataclasses.replace(back.pointer, created="") == dataclasses.replace(first.pointer, created="")


def test_a_bundle_that_was_removed_is_brought_back(s3: S3Client, publishing: Publish) -> None:
    first = publishing()
    s3.delete_object(Bucket="deploys", Key=first.pointer.bundle)
    again = publishing()
    assert (again.uploaded, again.unchanged) == (True, False)
    assert again.pointer.version_id != first.pointer.version_id
    assert content_of(s3, URL) == again.pointer.to_json()


def when_uploading(do: Callable[[], object]) -> Machine:
    """A machine on which ``do`` happens once, after the pointer was read and before it is moved."""
    done: list[object] = []

    def listen(event: Transfer | Note) -> None:
        if isinstance(event, Transfer) and event.label.startswith("publish ") and not done:
            done.append(None)
            do()

    return Machine(listener=listen)


def test_of_two_publishers_the_second_is_told(repo: Repo, s3: S3Client, publishing: Publish) -> None:
    repo.write("app.rb", "puts 2\n")
    theirs = repo.commit()
    ours = repo.git("rev-parse", "HEAD~1")
    with pytest.raises(
        BootagentError, match=f"was moved by someone else.*revision {theirs}.*revision {ours} is uploaded"
    ):
        publishing(when_uploading(lambda: publishing(ref=theirs)), ref=ours)
    assert pointer.parse(content_of(s3, URL), URL).revision == theirs
    assert not publishing(ref=ours).uploaded


def test_two_publishers_of_one_commit_agree(s3: S3Client, publishing: Publish) -> None:
    theirs: list[Published] = []
    ours = publishing(when_uploading(lambda: theirs.append(publishing())))
    assert (theirs[0].uploaded, theirs[0].unchanged) == (True, False)
    assert not ours.uploaded
    assert ours.pointer == theirs[0].pointer


def test_a_reader_never_sees_half_a_release(repo: Repo, s3: S3Client, publishing: Publish, tmp_path: Path) -> None:
    publishing()
    over = threading.Event()
    seen: list[Mapping[str, tuple[int, bytes]]] = []
    revisions: list[str] = []
    problems: list[BaseException] = []

    def read() -> None:
        try:
            while not over.is_set():
                named = pointer.parse(content_of(s3, URL), URL)
                answer = s3.get_object(Bucket="deploys", Key=named.bundle, VersionId=named.version_id or "")
                revisions.append(named.revision)
                seen.append(tree_of(unpacked(answer["Body"].read(), tmp_path / f"read{len(seen)}")))
        except BaseException as error:
            problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(10):
            repo.write("app.rb", f"puts {number}\n")
            repo.write("lib/same.rb", f"puts {number}\n")
            repo.commit()
            publishing()
    finally:
        over.set()
        reader.join()
    assert problems == []
    assert len(set(revisions)) > 2
    for found in seen:
        assert "lib/same.rb" not in found or found["app.rb"] == found["lib/same.rb"]
        assert "bin/start" in found


def test_no_copy_on_disk_but_the_compressed_one(repo: Repo, publishing: Publish, scratch: Path) -> None:
    repo.write("zeros", bytes(50_000_000))
    repo.commit()
    largest = 0

    def measure(event: Transfer | Note) -> None:
        nonlocal largest
        files = [path.stat().st_size for path in scratch.rglob("*") if path.is_file()]
        largest = max(largest, sum(files))

    published = publishing(Machine(listener=measure))
    assert published.pointer.unpacked_size and published.pointer.unpacked_size > 50_000_000
    assert largest < 1_000_000
