"""Planted roles: who could make a superuser's session run code, by way of the roles of posduif."""

from posduif_cli.db import queries
from posduif_cli.db.quoting import quoted
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import PlantedRole


def refuse(session: Session) -> None:
    """Raise PlantedRole where a role that is no superuser could make any role a member of ours.

    A superuser's session takes these roles on, and code in a tenant's database can always go back to the session's own
    user.
    """
    named = queries.load("db/session")
    planted = session.tuples(named["find_planted"])
    if not planted:
        return
    role, holders = planted[0]
    if role is None:
        message = f"the role that made {ADMIN_ROLE} on server {session.server.name} is gone, or never was a superuser's"
        hints = [
            f"look at who made the databases of {ADMIN_ROLE} and what is in them",
            f"where you trust them, a superuser types: GRANT {ADMIN_ROLE} TO {quoted(session.login)};",
        ]
    else:
        message = f"{', '.join(holders)} may give {role} to anyone on server {session.server.name}"
        hints = [
            f"a superuser types: REVOKE ADMIN OPTION FOR {given} FROM {', '.join(map(quoted, names))} CASCADE;"
            for given, names in planted
            if given is not None
        ]
        lost = sorted({name for given, _ in planted for (name,) in session.tuples(named["list_members"], role=given)})
        if lost:
            # Never as a statement with these names in it: a holder chose the members.
            taken = ", ".join(lost)
            hints.append(f"that takes it from {taken}, too: GRANT it WITH INHERIT TRUE, SET TRUE to those you trust")
    raise PlantedRole(
        message,
        why=f"{session.login} is a superuser, and the owner of a tenant's database can have its sessions run code",
        hint=[*hints, "or use a login that is no superuser"],
    )
