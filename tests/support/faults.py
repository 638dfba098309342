"""Faults that `tenant verify` finds in tenant {t}: SQL that makes one, the check, and words of the message."""

FAULTS = {
    "limit of the database": ("ALTER DATABASE {t} CONNECTION LIMIT 3", "database.limit", "connection limit of 3"),
    "public": ("GRANT CONNECT ON DATABASE {t} TO PUBLIC", "database.public", "PUBLIC has rights"),
    "zone of the database": ("ALTER DATABASE {t} RESET timezone", "database.timezone", "database {t} is not pinned"),
    "zone of the role": (
        "ALTER ROLE {t}_engine IN DATABASE {t} RESET timezone",
        "engine.timezone",
        "{t}_engine is not pinned",
    ),
    "may create": ("GRANT CREATE ON SCHEMA public TO {t}_engine", "engine.creates", "may create objects"),
    "may not log in": ("ALTER ROLE {t}_engine NOLOGIN", "engine.login", "cannot connect"),
    "may not connect": ("REVOKE CONNECT ON DATABASE {t} FROM {t}_engine", "engine.login", "cannot connect"),
    "createdb": ("ALTER ROLE {t}_engine CREATEDB", "engine.powers", "has CREATEDB"),
    "createrole": ("ALTER ROLE {t}_engine CREATEROLE", "engine.powers", "has CREATEROLE"),
    "out of the group": (
        "SET ROLE posduif_admin; REVOKE posduif_engine FROM {t}_engine",
        "engine.groups",
        "not tied to posduif's groups",
    ),
    "out of reach": (
        "SET ROLE posduif_admin; REVOKE {t}_engine FROM posduif_admin",
        "engine.groups",
        "not tied to posduif's groups",
    ),
    "limit of the role": ("ALTER ROLE {t}_engine CONNECTION LIMIT 1", "engine.limit", "1 connection"),
    "comment": ("COMMENT ON ROLE {t}_engine IS NULL", "engine.intent", "comment on {t}_engine"),
    "engine's rights": ("REVOKE INSERT ON messages FROM posduif_engine", "grants.differ", "is missing"),
    "texts": ("GRANT SELECT (content) ON messages TO posduif_support", "texts.readable", "may read texts"),
    "table": (
        "GRANT SELECT ON messages TO posduif_health",
        "texts.readable",
        "posduif_health may read texts: messages.content",
    ),
    "table, behind what everybody may": (
        "GRANT SELECT ON messages TO posduif_health, PUBLIC",
        "grants.differ",
        "is too much",
    ),
    "creators": (
        "DO $$BEGIN CREATE ROLE {t}_x; END$$; GRANT CREATE ON SCHEMA public TO {t}_x",
        "objects.creators",
        "role {t}_x may create objects in schema public",
    ),
    "public reads": ("GRANT SELECT ON users TO PUBLIC", "grants.differ", "is too much"),
    "code of others": ("GRANT TRIGGER, REFERENCES ON users TO {t}_engine", "grants.differ", "is too much"),
    "code of others, by a column": ("GRANT REFERENCES (id) ON messages TO {t}_engine", "grants.differ", "is too much"),
    "another role": (
        "ALTER DATABASE {t} SET role = 'posduif_engine'",
        "database.settings",
        "database {t} sets role for every session in it",
    ),
    "row security": (
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
        "tables.security",
        "switched on for users: no policy is for the engine",
    ),
    "row security of the owner, too": (
        "ALTER TABLE messages ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "tables.security",
        "backups fail",
    ),
    "row security with a policy": (
        "ALTER TABLE messages ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON messages TO posduif_engine USING (true)",
        "tables.security",
        "people at the desk and monitoring see no rows",
    ),
    "no role": ("DROP OWNED BY {t}_engine; DROP ROLE {t}_engine", "engine.missing", "role {t}_engine is missing"),
}
