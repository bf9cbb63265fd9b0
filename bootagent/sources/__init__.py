"""Where releases come from: each source resolves its moving name to one immutable :class:`Revision`."""

from __future__ import annotations

from bootagent.config.model import App, EbsSource, GitSource, ImageSource, NfsSource, S3Source
from bootagent.machine import Machine
from bootagent.sources import ebs, git, nfs, s3
from bootagent.sources.image import IN_PLACE as IMAGE_IN_PLACE
from bootagent.sources.image import in_place as see_in_image
from bootagent.sources.image import resolve as tree_of_image
from bootagent.sources.revision import Baked, Content, InPlace, Revision, Tree

__all__ = [
    "IMAGE_IN_PLACE",
    "Baked",
    "Content",
    "InPlace",
    "Revision",
    "Tree",
    "environment_commit",
    "resolve",
    "resolve_fallback",
]


def resolve(machine: Machine, app: App, region: str | None) -> Revision:
    """What the app's source holds right now; ``region`` is the instance's.

    Raises AwsError, BundleError, MachineError when it does not answer, BootagentError when it holds nothing.
    """
    match app.source:
        case S3Source():
            return s3.resolve(app.source, region)
        case GitSource():
            return git.resolve(machine, app.source, region, app.user, app.group)
        case NfsSource():
            return nfs.resolve(machine, app, app.source)
        case EbsSource():
            return ebs.resolve(app.source, region)
        case ImageSource():
            return _baked(machine, app.source) if app.source.copy else _of_image(machine, app)


def environment_commit(machine: Machine, app: App, region: str | None) -> str:
    """The commit that the git repository of the app's environment tree has now. Raises as the git source does.

    Root asks, who is to check it out: services are not to read each other's.
    """
    assert app.environment and app.environment.git
    return git.resolve(machine, app.environment.git, region, None, None).label


def resolve_fallback(machine: Machine, app: App) -> Revision | None:
    """The image's tree that stands in for a source that does not answer; None when the app names none."""
    return _baked(machine, app.fallback) if app.fallback and app.fallback.path else None


def _of_image(machine: Machine, app: App) -> Revision:
    see_in_image(machine, app.deploy_to)
    return Revision(IMAGE_IN_PLACE, "image", str(app.source), InPlace())


def _baked(machine: Machine, source: ImageSource) -> Revision:
    if source.path is None:
        return Revision("image", "image", "the image", Baked())
    identity, label, path = tree_of_image(machine, source)
    return Revision(identity, label, str(source), Tree(path))
