"""What a refusal tells others to type, typed."""

import re

from support.servers import PgServer


def typed(hint: str) -> tuple[str, str, str]:
    """Take a hint apart: who types what, in which database; the first two are empty where it is no such hint."""
    found = re.fullmatch(r"(\w[\w ]*) types(?:, in (\w+))?: (.+;)", hint, re.DOTALL)
    return (found[1], found[2] or "postgres", found[3]) if found else ("", "", hint)


def obey(server: PgServer, tries: list[str]) -> int:
    """Have everyone type what the hints of a refusal tell them to; return how many hints there were."""
    hints = [typed(hint) for hint in tries if typed(hint)[0]]
    for who, database, sql in hints:
        assert "\n" not in sql
        with server.connect(database) as conn:
            if who != "a superuser":
                conn.execute(f"SET SESSION AUTHORIZATION {who.removeprefix('a member of ')}".encode())
            conn.execute(sql.encode())
    return len(hints)
