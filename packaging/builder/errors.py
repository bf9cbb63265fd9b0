"""What can go wrong in a build, told in a sentence."""


class BuildError(Exception):
    """A package cannot be built; the message says why, and what to do where that is known."""
