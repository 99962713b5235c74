"""`python -m selfadapt`: the command line, where its script is on no path."""

from selfadapt.cli import main

if __name__ == "__main__":
    main()
