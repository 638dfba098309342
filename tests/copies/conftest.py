"""A store of backups, and a tenant with rows of many kinds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.runner import Posduif
from support.servers import PgServer
from support.tenants import forget

ROWS = """
INSERT INTO users (username, user_type) VALUES ('mia', 'mobile');
INSERT INTO messages (sender_id, recipient_id, content)
SELECT a.id, b.id, 'hello ' || n FROM users a, users b, generate_series(1, 500) n
WHERE a.username = 'desk' AND b.username = 'mia';
CREATE SEQUENCE numbers; SELECT nextval('numbers'), nextval('numbers');
CREATE TABLE odd ("A b" jsonb, t timestamptz, f float8, b bytea, a int[], r int4range);
INSERT INTO odd VALUES ('{"x": [1, 2]}', now(), 0.1, '\\x00ff', '{1,2}', '[1,5)');
INSERT INTO odd VALUES (NULL, 'infinity', 'NaN', '', '{}', 'empty');
SELECT lo_from_bytea(0, 'large');
"""


@pytest.fixture
def store(
    ops: Posduif, server: PgServer, name: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of backups of a machine, whose login is no superuser, and a tenant with rows of many kinds."""
    entry = {"dsn": server.dsn_for(user=f"{name}_ops", password="x")}
    folder = tmp_path / "store"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"servers": {"main": entry}, "backup": {"dir": str(folder)}}))
    clean_environ.delenv("POSDUIF_DSN", raising=False)
    clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
    ops("tenant", "create", name, "--web-user", "desk", "--url", "https://one.test")
    server.sql(f"SET ROLE posduif_admin; {ROWS}", database=name)
    yield folder
    forget(server, f"{name}_new")


@pytest.fixture
def posduif(ops: Posduif) -> Posduif:
    return ops
