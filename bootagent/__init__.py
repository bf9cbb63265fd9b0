"""bootagent: an instance configures itself at boot, from its tags to healthy services."""

__version__ = "0.1.0"
