"""`python -m macl` is the command `macl`."""

from macl.cli import main

if __name__ == "__main__":
    main()
