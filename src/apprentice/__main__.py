"""`python -m apprentice` is `apprentice`."""

from apprentice.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
