"""What a repository is called: see "GIT URLS" in git-clone(1)."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from bootagent.errors import BootagentError
from bootagent.machine import Machine

#: Always allowed, for submodules too. What an address itself names besides is in _ASKED.
_USUAL = ("https", "ssh", "git")
#: Allowed when the address itself says so: a file of this machine, and a way that anyone on it can change.
_ASKED = ("file", "http")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HELPER = re.compile(r"[A-Za-z0-9]+::")
#: ``host:path``, where no slash comes before the colon.
_SCP = re.compile(r"(?P<host>(?:[^/:\[]+@)?(?:\[[^\]/]+\]|[^/:\[]+)):(?P<path>.*)")
_USERINFO = re.compile(r"(?<=://)[^/\s@]*(?:@[^/\s@]*)*@")


@dataclass(frozen=True)
class Address:
    """A repository's address as it was written, and how git gets to it: ``protocol`` is https, ssh, git, http or file.

    ``real`` is what git is told: a path of this machine is a real one there.
    """

    url: str
    real: str
    protocol: str

    def __str__(self) -> str:
        return without_secrets(self.url)

    @property
    def protocols(self) -> str:
        """What git may use, for GIT_ALLOW_PROTOCOL: git(1)."""
        return ":".join(dict.fromkeys((*_USUAL, self.protocol)))

    @property
    def host(self) -> str:
        """The host and, when it is not the usual one, ``-p`` and the port, as ssh-keyscan(1) takes them."""
        if scp := _scp(self.url):
            return scp["host"].rpartition("@")[2].strip("[]")
        host = self.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        name, colon, port = host.rpartition(":")
        if colon and port.isdigit():
            return f"-p {port} {name.strip('[]')}"
        return host.rstrip(":").strip("[]")


def locate(machine: Machine, url: str) -> Address:
    """What ``url`` names, over one of the allowed protocols.

    Raises BootagentError for an option in a URL's place, a relative path, and a protocol that runs programs.
    """
    shown = without_secrets(url)
    if url.startswith("-") or re.search(r"[\x00-\x20\x7f]", url) or not url:
        raise BootagentError(f"{shown!r} cannot be the address of a git repository")
    if scheme := _SCHEME.match(url):
        protocol = scheme[1].lower()
        if protocol not in (*_USUAL, *_ASKED):
            raise BootagentError(
                f"{shown}: {protocol} is no protocol to get a repository by",
                remedy=f"use {', '.join((*_USUAL, *_ASKED))} or a path",
            )
        place = url[scheme.end() :]
        if place.startswith("-"):
            raise BootagentError(f"{shown!r} cannot be the address of a git repository")
        if protocol == "file":
            return Address(url, f"file://{machine.real(place)}", "file")
        return Address(url, url, protocol)
    if _HELPER.match(url):
        raise BootagentError(f"{shown}: a program of git's may not be named in an address", remedy="use https or ssh")
    if _scp(url):
        return Address(url, url, "ssh")
    return Address(url, str(machine.real(url)), "file")


def relative(url: str, parent: str) -> str:
    """A submodule's URL; one that begins with ./ or ../ is below the URL of its parent: gitmodules(5)."""
    if not url.startswith(("./", "../")):
        return url
    scp = None if _SCHEME.match(parent) else _scp(parent)
    if scheme := _SCHEME.match(parent):
        host, _, path = parent[scheme.end() :].partition("/")
        before, path = f"{scheme[0]}{host}/", path
    elif scp:
        before, path = f"{scp['host']}:", scp["path"]
    else:
        before, path = "", parent
    joined = posixpath.normpath(posixpath.join(path.rstrip("/"), url))
    if joined == ".." or joined.startswith("../"):
        raise BootagentError(f"submodule URL {url} leads out of {without_secrets(parent)}")
    return before + joined


def without_secrets(text: str) -> str:
    """Any text without the user names and passwords of the URLs in it."""
    return _USERINFO.sub("", text)


def _scp(url: str) -> re.Match[str] | None:
    return None if _SCHEME.match(url) or url.startswith("/") else _SCP.fullmatch(url)
