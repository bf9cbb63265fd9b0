"""``python -m bootagent``."""

from bootagent.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
