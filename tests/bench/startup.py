"""What a start costs: `python tests/bench/startup.py`. Baselines are bare processes of the same interpreter."""

from measure import POSDUIF, PYTHON, pairs, process

if __name__ == "__main__":
    bare = process(PYTHON, "-c", "pass")
    typer = process(PYTHON, "-c", "import typer")
    pairs("posduif version / python -c pass", process(*POSDUIF, "version"), bare, rounds=15)
    pairs("posduif --help / python -c 'import typer'", process(*POSDUIF, "--help"), typer, rounds=15)
    pairs("posduif tenant create --help / import typer", process(*POSDUIF, "tenant", "create", "--help"), typer)
    pairs("posduif config show / import typer", process(*POSDUIF, "config", "show"), typer)
