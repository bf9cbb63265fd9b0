"""What addresses, refs and git's own words mean, without a repository."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bootagent.errors import BootagentError
from bootagent.git_repository import command, refs, submodules
from bootagent.git_repository.access import ssh_command
from bootagent.git_repository.address import locate, relative, without_secrets
from bootagent.machine import Machine

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = SHA[::-1]


@pytest.mark.parametrize(
    ("url", "real", "protocol", "host"),
    [
        ("https://example.com/app.git", "https://example.com/app.git", "https", "example.com"),
        ("https://example.com:8443/app", "https://example.com:8443/app", "https", "-p 8443 example.com"),
        ("ssh://git@example.com:2222/app", "ssh://git@example.com:2222/app", "ssh", "-p 2222 example.com"),
        ("ssh://git@[::1]:22/app", "ssh://git@[::1]:22/app", "ssh", "-p 22 ::1"),
        ("git@example.com:team/app.git", "git@example.com:team/app.git", "ssh", "example.com"),
        ("example.com:app", "example.com:app", "ssh", "example.com"),
        ("git@[::1]:app", "git@[::1]:app", "ssh", "::1"),
        ("git://example.com/app", "git://example.com/app", "git", "example.com"),
        ("http://example.com/app", "http://example.com/app", "http", "example.com"),
        ("/srv/git/a:b.git", "/machine/srv/git/a:b.git", "file", ""),
        ("file:///srv/app.git", "file:///machine/srv/app.git", "file", ""),
    ],
)
def test_addresses(url: str, real: str, protocol: str, host: str) -> None:
    address = locate(Machine(Path("/machine")), url)
    assert (address.real, address.protocol) == (real, protocol)
    assert address.protocols.split(":")[:3] == ["https", "ssh", "git"]
    assert (protocol in address.protocols.split(":")) and "ext" not in address.protocols
    if host:
        assert address.host == host


@pytest.mark.parametrize(
    ("url", "parent", "whole"),
    [
        ("https://a/b", "https://example.com/app", "https://a/b"),
        ("../lib.git", "https://example.com/team/app.git", "https://example.com/team/lib.git"),
        ("../lib.git", "https://example.com/team/app.git/", "https://example.com/team/lib.git"),
        ("../../x/lib", "ssh://git@example.com:22/team/app", "ssh://git@example.com:22/x/lib"),
        ("../lib.git", "git@example.com:team/app.git", "git@example.com:team/lib.git"),
        ("../lib.git", "git@example.com:app.git", "git@example.com:lib.git"),
        ("./inner", "https://example.com/app", "https://example.com/app/inner"),
        ("../lib", "/srv/git/app", "/srv/git/lib"),
        ("../lib", "file:///srv/git/app", "file:///srv/git/lib"),
    ],
)
def test_relative_addresses(url: str, parent: str, whole: str) -> None:
    assert relative(url, parent) == whole


@pytest.mark.parametrize("parent", ["https://example.com/app", "git@example.com:app"])
def test_no_submodule_leaves_its_host(parent: str) -> None:
    with pytest.raises(BootagentError, match="leads out of"):
        relative("../../evil.com/lib", parent)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@example.com/x", "https://example.com/x"),
        ("https://token@example.com/x", "https://example.com/x"),
        ("https://a:p@ss@example.com/x", "https://example.com/x"),
        ("fatal: unable to access 'https://u:p@h/x/': no", "fatal: unable to access 'https://h/x/': no"),
        ("https://example.com/a@b", "https://example.com/a@b"),
        ("git@example.com:x", "git@example.com:x"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_listing_is_read_past_warnings_and_peeled() -> None:
    listing = (
        f"warning: something\n{SHA}\tHEAD\n{SHA}\trefs/heads/main\nwarning: {OTHER}\tno\n"
        f"{SHA}\trefs/tags/v1\n{OTHER}\trefs/tags/v1^{{}}\n{OTHER}\trefs/heads/a/main\n"
    )
    found = refs.parse(listing)
    assert refs.choose(found, "main") == SHA
    assert refs.choose(found, "v1") == OTHER
    assert refs.choose(found, "HEAD") == SHA
    assert refs.choose(found, "refs/heads/a/main") == OTHER
    assert refs.choose(found, "heads/main") is None


def test_gitmodules_are_read() -> None:
    settings = (
        "submodule.a.b.path\nvendor/a b\0submodule.a.b.url\n../x\0submodule.c.path\nc\0"
        "submodule.d.url\nu\0submodule.e.path\0core.x\ny\0"
    )
    assert submodules.parse(settings) == {"vendor/a b": "../x", "c": None}
    listing = f"160000 commit {SHA}\tvendor/a b\x00040000 tree {SHA}\tc\x00"
    assert submodules.gitlinks(listing) == {"vendor/a b": SHA}


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (
            "Cloning into bare repository 'x'...\nERROR: Repository not found.\nfatal: Could not read from remote "
            "repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.\n",
            "Repository not found",
        ),
        (
            "Host key verification failed.\nfatal: Could not read from remote repository.\n",
            "Host key verification failed",
        ),
        ("fatal: Could not read from remote repository.\n", "Could not read from remote repository"),
        ("warning: x\nerror: one.\nfatal: two\nfatal: three\n", "two; three"),
        ("", ""),
    ],
)
def test_what_git_complains_of_is_found(tail: str, said: str) -> None:
    assert command.said(tail) == said


def test_ssh_trusts_nobody_and_asks_nothing() -> None:
    words = shlex.split(ssh_command(Path("/run/a b/key"), Path("/etc/known hosts")))
    assert words[-2:] == ["-i", "/run/a b/key"]
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        'UserKnownHostsFile="/etc/known hosts"',
        "IdentitiesOnly=yes",
        "ConnectTimeout=15",
    ):
        assert words[words.index(option) - 1] == "-o"
    assert "-i" not in shlex.split(ssh_command(None, Path("/etc/ssh/ssh_known_hosts")))
