"""What publishing reads out of git's answers, and what it will not put into a bundle."""

from __future__ import annotations

import pytest

from bootagent.publish import archive, tree


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (b"", []),
        (b" M app.rb\0", ["app.rb (modified)"]),
        (b"M  app.rb\0", ["app.rb (staged)"]),
        (b"MM app.rb\0", ["app.rb (modified)"]),
        (b"A  new.rb\0", ["new.rb (staged)"]),
        (b" D old.rb\0", ["old.rb (deleted)"]),
        (b"?? tmp/\0", ["tmp/ (untracked)"]),
        (b"UU both.rb\0", ["both.rb (unmerged)"]),
        (b"R  new name\0old name\0?? x\0", ["new name (staged)", "x (untracked)"]),
        ("?? grüße\0".encode(), ["grüße (untracked)"]),
        (b"?? not\xffutf8\0", ["not�utf8 (untracked)"]),
        (b"?? a\nb\0", ["a\nb (untracked)"]),
    ],
)
def test_changes(status: bytes, found: list[str]) -> None:
    assert tree.changes(status) == found


def test_gitlinks() -> None:
    listing = (
        b"100644 blob aaaa\tREADME\0"
        b"160000 commit bbbb\tvendor/some lib\0"
        b"120000 blob cccc\t160000 looks like one\0"
        b"160000 commit dddd\tnot\xffutf8\0"
    )
    assert tree.gitlinks(listing) == ["vendor/some lib", "not\udcffutf8"]


@pytest.mark.parametrize(
    ("name", "target", "out"),
    [
        ("log", "/var/log/app", True),
        ("log", "../shared/log", True),
        ("log", "..", True),
        ("a/b", "../c", False),
        ("a/b", "..", False),
        ("a/b", "../..", True),
        ("a/b/c", "../../../etc/passwd", True),
        ("a", "b/../../c", True),
        ("a", "..b", False),
        ("a", ".", False),
        ("a", "b/./c//d", False),
    ],
)
def test_leads_out(name: str, target: str, out: bool) -> None:
    assert archive.leads_out(name, target) is out
