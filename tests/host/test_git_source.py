"""Releases from git: real repositories, a real sshd, the mirror, and what can go wrong with each."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootagent import aws, git_repository
from bootagent.config.model import GitSource
from bootagent.errors import AwsError, BootagentError, BundleError, MachineError
from bootagent.git_repository import Access, Commit
from bootagent.git_repository.access import KEYS
from bootagent.machine import Machine, Note, Transfer
from bootagent.sandbox.cloud import Cloud
from bootagent.sources import git as git_source
from bootagent.steps.staged_commit import StagedCommit
from tests.conftest import processes_of
from tests.host.git_server import USER, GitServer, Repository, available
from tests.waiting import until

URL = "/srv/git/app.git"
DEPLOY_TO = "/srv/web"
WITHIN = 60.0


class Web:
    """A machine with ``deploy_to``, and what it is told to fetch from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.heard: list[str] = []
        self.machine = Machine(root, self._hear)
        self.identity = self.machine.identity(USER)
        self.releases = root / DEPLOY_TO.lstrip("/") / "releases"
        self.mirror = root / DEPLOY_TO.lstrip("/") / "repo"
        self.releases.mkdir(parents=True)
        self.give(self.releases.parent)
        self._count = 0

    def give(self, path: Path) -> None:
        """Let the app's user own a tree."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{USER}:", str(path)], check=True)

    def resolve(self, ref: str = "main", url: str = URL, access: Access | None = None, within: float = WITHIN) -> str:
        return git_repository.resolve(self.machine, url, ref, access or Access(), self.identity, within)

    def step(self, commit: Commit, within: float = WITHIN) -> StagedCommit:
        self._count += 1
        return StagedCommit(
            f"{DEPLOY_TO}/releases/{20260101000000 + self._count}", DEPLOY_TO, commit, within, USER, None
        )

    def stage(self, sha: str, url: str = URL, *, submodules: bool = False) -> Path:
        """The release made of a commit."""
        step = self.step(Commit(url, sha, submodules))
        assert not step.is_satisfied(self.machine)
        step.apply(self.machine)
        assert step.is_satisfied(self.machine)
        return self.machine.real(step.release)

    def _hear(self, event: Transfer | Note) -> None:
        self.heard.append(event.label)


@pytest.fixture
def web(machine_root: Path) -> Web:
    return Web(machine_root)


@pytest.fixture
def repository(web: Web, tmp_path: Path) -> Repository:
    """With one commit on main, at ``URL`` of the machine."""
    found = Repository(web.machine.real(URL), tmp_path / "work", USER)
    found.commit({"app.rb": "one", "bin/run": "#!/bin/sh\n"})
    return found


def tree(release: Path) -> dict[str, str]:
    """Every file and link of a directory with its content."""
    found = {}
    for path in sorted(release.rglob("*")):
        name = str(path.relative_to(release))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


# --- which commit --------------------------------------------------------------------------------------------


def test_names_stand_for_commits(web: Web, repository: Repository) -> None:
    first = repository.head()
    repository.git("tag", "-a", "-m", "annotated", "v1")
    repository.git("tag", "plain")
    repository.git("branch", "feature/login")
    second = repository.commit({"app.rb": "two"})
    repository.git("tag", "both", first)
    repository.git("branch", "both", second)
    repository.push("refs/tags/*:refs/tags/*", "feature/login", "refs/heads/both")
    assert {ref: web.resolve(ref) for ref in ("HEAD", "main", "refs/heads/main")} == dict.fromkeys(
        ("HEAD", "main", "refs/heads/main"), second
    )
    assert {ref: web.resolve(ref) for ref in ("v1", "plain", "refs/tags/v1", "feature/login")} == dict.fromkeys(
        ("v1", "plain", "refs/tags/v1", "feature/login"), first
    )
    assert web.resolve("both") == second, "of a branch and a tag of one name it is the branch"
    assert web.resolve("refs/tags/both") == first
    with pytest.raises(BundleError, match="no branch or tag 'login'"):  # the end of a name is not the name
        web.resolve("login")


def test_a_full_id_is_believed_and_nobody_asked(web: Web) -> None:
    assert web.resolve("ABCDEF0123" * 4, "https://127.0.0.1:1/nobody.git") == "abcdef0123" * 4


def test_an_unknown_name_names_those_near_it(web: Web, repository: Repository) -> None:
    with pytest.raises(BundleError, match=r"/srv/git/app\.git has no branch or tag 'mian'; near it are main"):
        web.resolve("mian")


def test_a_repository_without_commits_says_so(web: Web, tmp_path: Path) -> None:
    Repository(web.machine.real(URL), tmp_path / "work", USER).give()
    with pytest.raises(BundleError, match="is empty: it has no HEAD"):
        web.resolve("HEAD")


@pytest.mark.parametrize("ref", ["", "-x", "--upload-pack=touch x", "a..b", "a b", "x^{tree}", "main~1", "@{u}", "*"])
def test_what_cannot_be_a_ref_is_refused(web: Web, repository: Repository, ref: str) -> None:
    with pytest.raises(BootagentError, match="cannot be a git ref"):
        web.resolve(ref)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-x",
        "--upload-pack=x",
        "ext::sh -c x",
        "ext::sh",
        "fd::17",
        "ssh://-oProxyCommand=x/y",
        "gopher://h/x",
        "a/b",
    ],
)
def test_what_cannot_be_a_repository_is_refused(web: Web, url: str) -> None:
    with pytest.raises(BootagentError, match=r"cannot be the address|no protocol|program of git's|not an absolute"):
        web.resolve(url=url)


def test_the_source_says_which_commit_and_from_where(web: Web, repository: Repository) -> None:
    source = GitSource(URL, "main", None, "/etc/ssh/ssh_known_hosts", submodules=True)
    found = git_source.resolve(web.machine, source, "eu-west-1", USER, None)
    sha = repository.head()
    assert (found.id, found.label, found.origin) == (f"git:{sha}", sha, URL)
    assert found.content == Commit(URL, sha, True, None, "/etc/ssh/ssh_known_hosts", "eu-west-1")


# --- the files of a commit -----------------------------------------------------------------------------------


def test_a_release_is_the_commit_and_nothing_else(web: Web, repository: Repository) -> None:
    (repository.work / "bin/run").chmod(0o755)
    (repository.work / "link").symlink_to("bin/run")
    (repository.work / "away").symlink_to("/etc/hostname")
    attributes = "private export-ignore\nversion export-subst\n*.txt text=auto\n"
    more = {"private/notes": "x", "version": "$Format:%H$", "grüße mit blank": "x", ".gitattributes": attributes}
    sha = repository.commit({**more, "dos.txt": "a\r\nb\r\n"})
    repository.commit({"later": "not in it"})
    release = web.stage(sha)
    assert tree(release) == {
        ".gitattributes": attributes,
        "app.rb": "one",
        "away": "-> /etc/hostname",
        "bin/run": "#!/bin/sh\n",
        "dos.txt": tree(release)["dos.txt"],
        "grüße mit blank": "x",
        "link": "-> bin/run",
        "version": sha,
    }
    modes = {name: stat.S_IMODE((release / name).stat().st_mode) for name in (".", "bin", "app.rb", "bin/run")}
    assert modes == {".": 0o755, "bin": 0o755, "app.rb": 0o644, "bin/run": 0o755}
    if os.geteuid() == 0:
        owners = {path.lstat().st_uid for place in (release, web.mirror) for path in (place, *place.rglob("*"))}
        assert owners == {pwd.getpwnam(USER).pw_uid}
    assert sorted(path.name for path in web.releases.iterdir()) == [release.name]


def test_what_the_machine_and_the_mirror_are_configured_to_do_is_not_done_to_files(
    web: Web, repository: Repository
) -> None:
    web.stage(repository.head())
    sha = repository.commit({"a.txt": "a\nb\n", ".gitattributes": "*.txt filter=evil text\n"})
    for words in (["core.autocrlf", "true"], ["filter.evil.smudge", "sed s/a/EVIL/"], ["core.hooksPath", "/evil"]):
        subprocess.run(["git", "config", "--file", str(web.mirror / "config"), *words], check=True)
    web.give(web.mirror)
    assert (web.stage(sha) / "app.rb").read_text() == "one"
    assert "\r" not in (web.releases / "20260101000002/a.txt").read_bytes().decode()


def test_stand_ins_of_git_lfs_are_refused(web: Web, repository: Repository) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    fine = repository.commit({"README": f"A pointer begins with\n{pointer}"})
    web.stage(fine)
    sha = repository.commit({"model.bin": pointer, "images/a b.png": pointer})
    with pytest.raises(
        BundleError, match=r"git-lfs keeps elsewhere is not in the commit: (model\.bin|images/a b\.png)"
    ):
        web.stage(sha)
    assert len(list(web.releases.iterdir())) == 1


def test_submodules_come_at_the_commits_recorded(web: Web, repository: Repository, tmp_path: Path) -> None:
    inner = Repository(web.machine.real("/srv/git/inner.git"), tmp_path / "inner", USER)
    inner.commit({"inner": "one"})
    lib = Repository(web.machine.real("/srv/git/lib.git"), tmp_path / "lib", USER)
    lib.commit({"lib": "one"})
    lib.git("submodule", "add", "-q", str(inner.origin), "deep")
    lib.git("config", "--file", ".gitmodules", "submodule.deep.url", "../inner.git")
    lib.commit({"lib": "two"})
    repository.git("submodule", "add", "-q", str(lib.origin), "vendor/lib with blank")
    repository.git("config", "--file", ".gitmodules", "submodule.vendor/lib with blank.url", "../lib.git")
    sha = repository.commit()
    lib.commit({"lib": "three"})
    release = web.stage(sha, submodules=True)
    assert tree(release / "vendor") == {
        "lib with blank/.gitmodules": '[submodule "deep"]\n\tpath = deep\n\turl = ../inner.git\n',
        "lib with blank/deep/inner": "one",
        "lib with blank/lib": "two",
    }
    for one in (inner, lib, repository):  # once fetched, nobody is asked for them again
        shutil.rmtree(one.origin)
    assert tree(web.stage(sha, submodules=True)) == tree(release)
    without = web.stage(sha)
    assert tree(without / "vendor") == {}
    assert "submodules are left empty" in web.heard


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ext::sh -c touch% x", "may not be named|cannot be the address"),
        ("--upload-pack=x", "cannot be the address"),
        ("http://127.0.0.1:1/x", "http is not allowed"),
    ],
)
def test_hostile_submodules_are_refused(web: Web, repository: Repository, url: str, says: str) -> None:
    repository.git("submodule", "add", "-q", str(repository.origin), "lib")
    repository.git("config", "--file", ".gitmodules", "submodule.lib.url", url)
    sha = repository.commit()
    with pytest.raises(BundleError, match=says):
        web.stage(sha, submodules=True)
    assert list(web.releases.iterdir()) == []


def test_an_unusable_release_directory_is_told_of(web: Web, repository: Repository) -> None:
    sha = repository.commit({"big": os.urandom(4_000_000)})
    web.stage(sha)
    argv = [sys.executable, "-c", _APPLY, str(web.root), sha]
    # RLIMIT_FSIZE: as on a full disk, a write fails.
    done = subprocess.run(["prlimit", "--fsize=1000000", *argv], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr or "File size limit" in done.stderr, done.stderr
    assert [path.name for path in web.releases.iterdir()] == ["20260101000001"]


# --- the mirror ----------------------------------------------------------------------------------------------


def test_a_branch_that_moves_on_is_followed_back_and_forth(web: Web, repository: Repository) -> None:
    first = repository.head()
    assert (web.stage(web.resolve()) / "app.rb").read_text() == "one"
    repository.commit({"app.rb": "two"})
    assert (web.stage(web.resolve()) / "app.rb").read_text() == "two"
    repository.git("reset", "-q", "--hard", first)
    repository.commit({"app.rb": "instead of two"}, push=False)
    repository.push("--force", "HEAD")
    assert (web.stage(web.resolve()) / "app.rb").read_text() == "instead of two"
    assert web.heard.count("cloning") == 1
    assert web.heard.count("fetching") == 2


def test_a_deleted_branch_is_gone_from_the_mirror_and_makes_way(web: Web, repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "release")
    web.stage(repository.commit({"app.rb": "release"}))
    repository.push("--delete", "release")
    repository.git("branch", "-m", "release/1")  # cannot be beside a branch "release"
    sha = repository.commit({"app.rb": "release 1"})
    assert (web.stage(sha) / "app.rb").read_text() == "release 1"
    with pytest.raises(BundleError, match=r"no branch or tag 'release'; near it are release/1"):
        web.resolve("release")
    assert web.heard.count("cloning") == 1


def test_a_commit_that_no_branch_leads_to_is_asked_for_by_its_id(web: Web, repository: Repository) -> None:
    web.stage(repository.head())
    moved = repository.commit({"app.rb": "resolved, and then the branch moved"})
    repository.git("reset", "-q", "--hard", "HEAD~1")
    repository.push("--force", "HEAD")
    assert (web.stage(moved) / "app.rb").read_text().startswith("resolved")
    with pytest.raises(MachineError, match=f"does not have commit {'0' * 39}1"):
        web.stage("0" * 39 + "1")


def test_what_is_in_the_mirror_needs_no_network(web: Web, repository: Repository) -> None:
    sha = repository.head()
    web.stage(sha)
    shutil.rmtree(repository.origin)
    assert (web.stage(sha, "ssh://git@127.0.0.1:1/app.git") / "app.rb").read_text() == "one"


def test_a_mirror_of_capistranos_is_used_as_it_is(web: Web, repository: Repository) -> None:
    app_user = USER if os.geteuid() == 0 else None
    subprocess.run(["git", "clone", "-q", "--mirror", repository.origin, web.mirror], user=app_user, check=True)
    made = web.mirror.stat().st_ino
    sha = repository.commit({"app.rb": "two"})
    assert (web.stage(sha) / "app.rb").read_text() == "two"
    assert web.mirror.stat().st_ino == made
    # and the other way about
    third = repository.commit({"app.rb": "three"})
    subprocess.run(["git", "remote", "update", "--prune"], cwd=web.mirror, user=app_user, check=True)
    shutil.rmtree(repository.origin)
    assert (web.stage(third) / "app.rb").read_text() == "three"


def test_a_repository_that_has_moved_is_fetched_from_its_new_place(web: Web, repository: Repository) -> None:
    web.stage(repository.head())
    sha = repository.commit({"app.rb": "two"})
    repository.origin.rename(repository.origin.with_name("moved.git"))
    assert (web.stage(sha, "/srv/git/moved.git") / "app.rb").read_text() == "two"
    assert web.heard.count("cloning") == 1


@pytest.mark.parametrize("damage", ["empty pack", "no HEAD", "empty config", "left lock", "file", "empty refs"])
@pytest.mark.parametrize("again", [False, True], ids=["another commit", "the same"])
def test_a_damaged_mirror_is_made_anew(web: Web, repository: Repository, damage: str, again: bool) -> None:
    sha = repository.commit({"app.rb": "two"}) if again else repository.head()
    web.stage(sha)
    sha = sha if again else repository.commit({"app.rb": "two"})
    match damage:
        case "empty pack":
            for pack in (web.mirror / "objects/pack").glob("*.pack"):
                pack.chmod(0o644)
                pack.write_bytes(b"")
        case "no HEAD":
            (web.mirror / "HEAD").unlink()
        case "empty config":
            (web.mirror / "config").write_bytes(b"\0\0")
        case "left lock":
            (web.mirror / "packed-refs.lock").touch()
            (web.mirror / "HEAD.lock").touch()
            (web.mirror / "config.lock").touch()
            (web.mirror / "refs/heads/main.lock").touch()
        case "empty refs":
            (web.mirror / "packed-refs").write_bytes(b"\0\0\0")
    if damage == "file":
        shutil.rmtree(web.mirror)
        web.mirror.mkdir()
    web.give(web.mirror)
    assert (web.stage(sha) / "app.rb").read_text() == "two"
    assert (web.mirror / "HEAD").exists()
    assert sorted(path.name for path in web.mirror.parent.iterdir()) == ["releases", "repo"]


def test_what_many_fetches_leave_is_packed(web: Web, repository: Repository) -> None:
    web.stage(repository.head())
    subprocess.run(["git", "config", "--file", str(web.mirror / "config"), "gc.autoPackLimit", "2"], check=True)
    web.give(web.mirror)
    packs = []
    for number in range(4):
        web.stage(repository.commit({"app.rb": str(number)}))
        packs.append(len(list((web.mirror / "objects/pack").glob("*.pack"))))
    assert max(packs) == 2
    assert min(packs[1:]) == 1


def test_a_commit_with_a_file_missing_is_fetched_again(web: Web, repository: Repository) -> None:
    sha = repository.head()
    web.stage(sha)
    blob = repository.git("rev-parse", f"{sha}:app.rb").strip()
    pack = next((web.mirror / "objects/pack").glob("*.pack"))
    aside = web.root / "pack"
    pack.rename(aside)
    shutil.rmtree(web.mirror / "objects/pack")
    (web.mirror / "objects/pack").mkdir()
    with aside.open("rb") as file:
        subprocess.run(["git", "unpack-objects", "-q"], stdin=file, check=True, env={"GIT_DIR": str(web.mirror)})
    (web.mirror / "objects" / blob[:2] / blob[2:]).unlink()
    web.give(web.mirror)
    assert (web.stage(sha) / "app.rb").read_text() == "one"
    assert "the mirror is damaged" in web.heard


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_the_mirror_of_another_user_is_left_alone(web: Web, repository: Repository) -> None:
    web.mirror.mkdir()
    with pytest.raises(BootagentError, match=r"repo belongs to uid 0, not to nobody .*chown"):
        web.stage(repository.head())
    assert list(web.mirror.iterdir()) == []
    web.mirror.rmdir()
    web.mirror.symlink_to("/etc")
    with pytest.raises(BootagentError, match="'repo' is a link"):
        web.stage(repository.head())


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_repository_that_git_does_not_trust_comes_with_a_remedy(web: Web, repository: Repository) -> None:
    subprocess.run(["chown", "-R", "root:", str(repository.origin)], check=True)
    with pytest.raises(MachineError, match=r"dubious ownership.*git config --system --add safe.directory"):
        web.resolve()


# --- over ssh ------------------------------------------------------------------------------------------------

ssh = pytest.mark.skipif(not available(), reason="sshd serves as root")


@pytest.fixture
def server(web: Web, tmp_path: Path) -> Iterator[GitServer]:
    """With one commit that takes a while to send; the machine knows its host key and has the deploy key."""
    if not available():
        pytest.skip("sshd serves as root")
    found = Repository(tmp_path / "served.git", tmp_path / "work", None)
    found.commit({"app.rb": "one", "noise": os.urandom(300_000)})
    with GitServer(tmp_path / "sshd", found.origin).running() as running:
        known = web.machine.real("/etc/ssh/ssh_known_hosts")
        known.parent.mkdir(parents=True)
        known.write_text(running.known_hosts)
        key = web.machine.real("/etc/bootagent/deploy")
        key.parent.mkdir(parents=True)
        key.write_text(running.key())
        key.chmod(0o600)
        running.sha = found.head()
        yield running


KEY = Access("/etc/bootagent/deploy")


def commit_of(server: GitServer, key: str | None = KEY.key) -> Commit:
    return Commit(server.url, server.sha, False, key)


def keys_left(web: Web) -> list[Path]:
    keys = web.machine.real(KEYS)
    return list(keys.iterdir()) if keys.exists() else []


@ssh
def test_a_deploy_key_opens_the_repository(web: Web, server: GitServer) -> None:
    assert web.resolve(url=server.url, access=KEY) == server.sha
    step = web.step(commit_of(server))
    step.apply(web.machine)
    assert (web.machine.real(step.release) / "app.rb").read_text() == "one"
    assert keys_left(web) == []
    asked = server.asked
    web.step(commit_of(server)).apply(web.machine)
    assert server.asked == asked, "what is in the mirror is not asked for"


@ssh
def test_the_key_is_nobody_elses_while_it_is_used(web: Web, server: GitServer) -> None:
    server.mode("late")
    child = subprocess.Popen([sys.executable, "-c", _RESOLVE, str(web.root), server.url])
    try:
        until(lambda: server.asked)
        (directory,) = keys_left(web)
        nobody = pwd.getpwnam(USER).pw_uid
        assert (directory.stat().st_uid, stat.S_IMODE(directory.stat().st_mode)) == (nobody, 0o700)
        key = directory / "key"
        assert (key.stat().st_uid, stat.S_IMODE(key.stat().st_mode)) == (nobody, 0o600)
        secret = server.key().splitlines()[1]
        for pid in processes_of(web.root):
            for name in ("cmdline", "environ"):
                assert secret not in Path(f"/proc/{pid}/{name}").read_text()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    server.mode("well")
    assert web.resolve(url=server.url, access=KEY) == server.sha
    assert keys_left(web) == [], "what a killed run left is gone, too"


@ssh
def test_an_unknown_host_is_not_trusted(web: Web, server: GitServer) -> None:
    known = web.machine.real("/etc/ssh/ssh_known_hosts")
    known.write_text("")
    remedy = rf"ssh-keyscan -p {server.port} 127\.0\.0\.1 >> /etc/ssh/ssh_known_hosts"
    with pytest.raises(MachineError, match=rf"Host key verification failed .*{remedy}"):
        web.resolve(url=server.url, access=KEY)
    kind, key, _ = (server.directory / "foreign.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{server.port} {kind} {key}\n")
    with pytest.raises(MachineError, match="Host key verification failed"):
        web.resolve(url=server.url, access=KEY)
    assert server.asked == 0


@ssh
def test_a_wrong_key_is_told_from_none(web: Web, server: GitServer) -> None:
    key = web.machine.real("/etc/bootagent/deploy")
    key.write_text(server.key("foreign"))
    with pytest.raises(MachineError, match=r"Permission denied \(publickey\).*let the owner of /etc/bootagent/deploy"):
        web.resolve(url=server.url, access=KEY)
    key.chmod(0o644)
    with pytest.raises(BootagentError, match="every user may read the deploy key"):
        web.resolve(url=server.url, access=KEY)
    key.write_text("ssh-ed25519 AAAA")
    key.chmod(0o600)
    with pytest.raises(BootagentError, match="is no private key"):
        web.resolve(url=server.url, access=KEY)
    key.unlink()
    with pytest.raises(BootagentError, match="cannot be read: No such file"):
        web.resolve(url=server.url, access=KEY)
    assert keys_left(web) == []


@ssh
def test_the_key_can_be_a_parameter(web: Web, server: GitServer, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    aws.forget_clients()
    # As it comes out of a browser's form.
    value = server.key().strip().replace("\n", "\r\n")
    aws.ssm(cloud.region).put_parameter(Name="/web/deploy-key", Value=value, Type="SecureString")
    assert web.resolve(url=server.url, access=Access("ssm:/web/deploy-key", region=cloud.region)) == server.sha
    with pytest.raises(AwsError, match=r"cannot read parameter /web/none: ParameterNotFound"):
        web.resolve(url=server.url, access=Access("ssm:/web/none", region=cloud.region))
    aws.forget_clients()


@ssh
@pytest.mark.parametrize("mode", ["late", "stuck"])
def test_a_server_that_stops_answering_is_given_up_in_time(web: Web, server: GitServer, mode: str) -> None:
    server.mode(mode)
    start = time.monotonic()
    with pytest.raises(MachineError, match=r"git clone of ssh://127.0.0.1:\d+/app.git did not end in time"):
        web.step(commit_of(server), within=3).apply(web.machine)
    assert time.monotonic() - start < 20
    assert list(web.mirror.parent.iterdir()) == [web.releases]
    assert list(web.releases.iterdir()) == []
    assert keys_left(web) == []


def test_a_host_that_takes_the_connection_and_says_nothing_is_given_up(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        for url in (f"ssh://git@127.0.0.1:{port}/x", f"https://127.0.0.1:{port}/x", f"git://127.0.0.1:{port}/x"):
            start = time.monotonic()
            with pytest.raises(MachineError, match="did not end in time"):
                web.resolve(url=url, within=1)
            assert time.monotonic() - start < 15
    assert processes_of(web.root) == []


@ssh
def test_a_connection_that_breaks_leaves_nothing_and_the_next_try_succeeds(web: Web, server: GitServer) -> None:
    server.mode("cut")
    with pytest.raises(
        MachineError, match=r"cannot clone ssh://127.0.0.1:\d+/app.git: .*(early EOF|index-pack|hung up)"
    ):
        web.step(commit_of(server)).apply(web.machine)
    assert list(web.mirror.parent.iterdir()) == [web.releases]
    server.mode("well")
    web.step(commit_of(server)).apply(web.machine)


@ssh
def test_killed_in_the_middle_the_next_run_succeeds(web: Web, server: GitServer) -> None:
    server.mode("stuck")
    child = subprocess.Popen([sys.executable, "-c", _APPLY, str(web.root), server.sha, server.url, str(KEY.key)])
    until(lambda: list(web.mirror.parent.glob(".repo.partial/objects/pack/tmp_pack_*")))
    child.send_signal(signal.SIGKILL)
    child.wait()
    server.mode("well")
    step = web.step(commit_of(server))
    step.apply(web.machine)
    assert (web.machine.real(step.release) / "app.rb").read_text() == "one"
    assert sorted(path.name for path in web.mirror.parent.iterdir()) == ["releases", "repo"]
    assert keys_left(web) == []


def test_passwords_are_never_shown(web: Web) -> None:
    for within in (30.0, 0.01):
        with pytest.raises(MachineError) as caught:
            web.resolve(url="https://user:s3cret@127.0.0.1:1/x", within=within)
        assert "s3cret" not in repr((str(caught.value), caught.value.__cause__, web.heard))
        assert re.search(r"https://127\.0\.0\.1:1/x", str(caught.value))


#: Programs of their own, to be killed: arguments are the root, the commit, the URL and the key.
_APPLY = f"""
import sys
from pathlib import Path
from bootagent.git_repository import Commit
from bootagent.machine import Machine
from bootagent.steps.staged_commit import StagedCommit
root, sha, url, key = [*sys.argv[1:], {URL!r}, None][:4] if len(sys.argv) < 5 else sys.argv[1:]
commit = Commit(url, sha, False, key)
step = StagedCommit("{DEPLOY_TO}/releases/20260202000000", "{DEPLOY_TO}", commit, 60, {USER!r}, None)
step.apply(Machine(Path(root)))
"""
_RESOLVE = f"""
import sys
from pathlib import Path
from bootagent.git_repository import Access, resolve
from bootagent.machine import Machine
machine = Machine(Path(sys.argv[1]))
resolve(machine, sys.argv[2], "main", Access({KEY.key!r}), machine.identity({USER!r}))
"""
