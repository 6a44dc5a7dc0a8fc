"""`python -m hyprstream` is the `hyprstream` command."""

from hyprstream.cli.main import main

if __name__ == "__main__":
    main()
