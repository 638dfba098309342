"""`python -m posduif_cli` is `posduif`."""

from posduif_cli.main import entry

if __name__ == "__main__":
    entry()
