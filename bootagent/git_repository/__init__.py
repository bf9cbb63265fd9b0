"""A remote git repository: which commit a name stands for, a mirror of it, and the files of one commit.

address.py     what a repository is called: allowed ways to it, and its name without secrets
access.py      how to get in: the deploy key, for as long as a command runs, and what ssh may trust
command.py     git as the app's user under a deadline, and what it complains of in one line
refs.py        the commit that a branch or tag stands for now
mirror.py      the bare clone in ``deploy_to/repo``, as Capistrano keeps it
submodules.py  which other repositories a commit refers to
checkout.py    the story: mirror, files, submodules
"""

from __future__ import annotations

from bootagent.git_repository.access import Access, Commit
from bootagent.git_repository.checkout import check_out
from bootagent.git_repository.refs import resolve

__all__ = ["Access", "Commit", "check_out", "resolve"]
