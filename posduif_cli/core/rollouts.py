"""Rollouts: migrations over many tenants."""

import time
from collections.abc import Sequence

from posduif_cli.core import migrations
from posduif_cli.core.fleet import Fleet
from posduif_cli.errors import MigrationFailed, PosduifError
from posduif_cli.models import Outcome, OutcomeError, SchemaStatus, State, Tenant


def status(fleet: Fleet, *, tenants: Sequence[str] | None) -> tuple[list[SchemaStatus], dict[str, PosduifError]]:
    """Return where the schemas stand, from the records alone, and the servers that could not be asked."""
    chosen, errors = fleet.choose(tenants)
    return [
        SchemaStatus(t.tenant, t.server, t.state, t.schema_version, t.latest_version, t.pending, t.error)
        for t in chosen
    ], errors


def up(fleet: Fleet, *, tenants: Sequence[str]) -> tuple[list[Outcome], dict[str, PosduifError]]:
    """Bring the named tenants to the newest schema, one after the other; an outcome each, and the errors."""
    _ = fleet.folders.files
    outcomes: list[Outcome] = []
    errors: dict[str, PosduifError] = {}
    for name in tenants:
        started = time.monotonic()
        tenant = None
        try:
            server, tenant = fleet.find(name)
            if tenant.state is not State.ACTIVE:
                outcomes.append(_skipped(tenant))
                continue
            with fleet.enter(server, name) as conn:
                conn.require_admin()
                done = migrations.up(conn, folders=fleet.folders)
        except PosduifError as error:
            errors[name] = error
            outcomes.append(_failed(name, tenant, error, time.monotonic() - started))
        else:
            outcomes.append(_done(tenant, done, time.monotonic() - started))
    return outcomes, errors


def _done(tenant: Tenant, done: migrations.Applied, seconds: float) -> Outcome:
    changed = bool(done.versions)
    return Outcome(
        tenant.tenant,
        tenant.server,
        "ok" if changed else "unchanged",
        changed,
        done.before,
        done.after,
        round(seconds, 3),
    )


def _skipped(tenant: Tenant) -> Outcome:
    reason = OutcomeError(f"tenant {tenant.tenant} is {tenant.state}")
    version = tenant.schema_version
    return Outcome(tenant.tenant, tenant.server, "skipped", False, version, version, 0.0, reason)


def _failed(name: str, tenant: Tenant | None, error: PosduifError, seconds: float) -> Outcome:
    known = error if isinstance(error, MigrationFailed) else None
    version = tenant.schema_version if tenant else None
    return Outcome(
        name,
        tenant.server if tenant else "",
        "failed",
        False,
        version,
        version,
        round(seconds, 3),
        OutcomeError(
            error.message,
            known.sqlstate if known else None,
            known.file if known else None,
            known.line if known else None,
        ),
    )
