"""``python -m fdfa_cli`` is the command `fdfa`."""

from fdfa_cli import main

if __name__ == "__main__":
    main(prog_name="fdfa")
