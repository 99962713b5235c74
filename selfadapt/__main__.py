"""`python -m selfadapt`: the command line, for environments whose scripts are not on the path."""

from selfadapt.cli import main

main()
