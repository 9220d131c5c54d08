"""`python -m isoplan` is the console script `isoplan`."""

from isoplan.cli import main

if __name__ == "__main__":
    main()
