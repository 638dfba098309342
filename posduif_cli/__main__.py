"""`python -m posduif_cli` is `posduif`."""

from posduif_cli.main import main

if __name__ == "__main__":
    main()
