"""`python -m slidescreen`."""

from slidescreen.cli import main

main()
