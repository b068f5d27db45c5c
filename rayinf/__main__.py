"""`python -m rayinf` is the command `rayinf`."""

from rayinf.cli import main

if __name__ == "__main__":
    main()
