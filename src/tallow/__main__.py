"""`python -m tallow`."""

from tallow.cli import main

if __name__ == "__main__":
    main()
