"""In the packages, in certifi's place: the machine's own certificate authorities.

Whoever keeps the machine updates them, and may have added one of his own; a list baked into a package only ages.
Where there is none, certifi's list is used.
"""

from pathlib import Path

#: Debian and Ubuntu; Amazon Linux and Fedora; Alpine and macOS; openSUSE.
_PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)


def where() -> str:
    """The path of a file with the authorities' certificates."""
    present = (path for path in _PLACES if Path(path).exists())
    return next(present, str(Path(__file__).with_name("cacert.pem")))


def contents() -> str:
    """The certificates themselves."""
    return Path(where()).read_text(encoding="utf-8", errors="replace")
