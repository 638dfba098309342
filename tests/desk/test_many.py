"""Long lists: a listing of many rows holds no more of them in memory than of a few."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.runner import Posduif
from support.servers import PgServer

pytestmark = pytest.mark.one_server
MANY = 100_000
# Linux's ru_maxrss of a new process begins with its parent's, so /proc is asked where there is one. Only ratios count.
PEAK = """
import os, resource, sys
from posduif_cli import main
code = main.run(sys.argv[1:])
if os.path.exists("/proc/self/status"):
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, file=sys.stderr)
sys.exit(code)
"""


def peak(out: Path, *argv: str) -> tuple[int, int]:
    """Run a command; return its peak resident size and how many lines it wrote."""
    with out.open("w") as stream:
        program = [sys.executable, "-c", PEAK, *argv]
        done = subprocess.run(program, stdout=stream, stderr=subprocess.PIPE, env=os.environ)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]), out.read_text().count("\n")


@pytest.mark.parametrize(("kind", "further"), [("tsv", 1), ("jsonl", 0)])
def test_a_hundred_thousand_tokens_take_no_memory(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path, kind: str, further: int
) -> None:
    few = ("token", "list", tenant, "-o", kind, "--limit", str(MANY))
    add = """INSERT INTO public.enrollment_tokens (tenant_id, created_by, expires_at)
             SELECT current_database(), id, now() + interval '1 h' FROM public.users, generate_series(1, {})"""
    server.sql(add.format(10), database=tenant)
    small, lines = peak(tmp_path / "few", *few)
    assert lines == 10 + further
    server.sql(add.format(MANY - 10), database=tenant)
    large, lines = peak(tmp_path / "many", *few)
    assert lines == MANY + further
    assert large < small * 1.1, f"{large} against {small}"
