-- needs: nothing

-- name: find_database
-- A database that may be taken in: whose it is, what people noted on it, and whether this login could take it over.
-- *path* is a search_path that would put other people's functions before PostgreSQL's in every new session.
-- *trusted* says that nobody but administrators could have written the comment.
SELECT d.oid::int8 AS oid, pg_get_userbyid(d.datdba)::text AS owner, d.datallowconn AS open,
       (SELECT rolsuper OR rolname = 'posduif_admin' FROM pg_roles WHERE oid = d.datdba) AS trusted,
       d.datistemplate AS template,
       shobj_description(d.oid, 'pg_database') AS comment,
       (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = session_user) AS may_own,
       (SELECT s.setting FROM pg_db_role_setting c, unnest(c.setconfig) s (setting)
        WHERE c.setdatabase = d.oid AND s.setting ~ '^search_path=.*pg_catalog'
          AND s.setting !~ '^search_path=[ "]*pg_catalog\M' LIMIT 1) AS path
FROM pg_database d WHERE d.datname = %(name)s;

-- name: find_tables
-- Those of some tables that exist, or a view in their place.
SELECT t FROM unnest(%(tables)s::text[]) t JOIN pg_class c ON c.oid = to_regclass(t)
WHERE c.relkind IN ('r', 'p', 'v') ORDER BY t;

-- name: list_obstacles
-- What would run other people's code with an administrator's rights, or is no version table as dbmate or posduif make
-- one; each with the SQL that removes it.
WITH version_table AS (
    SELECT * FROM pg_class WHERE oid = to_regclass('public.schema_migrations')
)
SELECT format('event trigger %%I would run with an administrator''s rights', evtname) AS what,
       format('DROP EVENT TRIGGER %%I;', evtname) AS fix
FROM pg_event_trigger WHERE evtenabled <> 'D'
UNION ALL
SELECT 'schema_migrations is no plain table', 'ALTER TABLE public.schema_migrations RENAME TO schema_migrations_before;'
FROM version_table
WHERE relkind <> 'r' OR relrowsecurity OR relispartition OR relhassubclass OR relhasrules
   OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = version_table.oid)
   OR EXISTS (SELECT FROM pg_policy WHERE polrelid = version_table.oid)
   OR EXISTS (SELECT FROM pg_index WHERE indrelid = version_table.oid AND (indexprs IS NOT NULL OR indpred IS NOT NULL))
UNION ALL
SELECT format('schema_migrations has the trigger %%I', tgname), format('DROP TRIGGER %%I ON public.schema_migrations;', tgname)
FROM pg_trigger JOIN version_table v ON v.oid = tgrelid
UNION ALL
SELECT format('schema_migrations has the constraint %%I', conname),
       format('ALTER TABLE public.schema_migrations DROP CONSTRAINT %%I;', conname)
FROM pg_constraint JOIN version_table v ON v.oid = conrelid WHERE contype NOT IN ('p', 'u', 'n')
UNION ALL
SELECT format('schema_migrations is another tool''s: its column %%I is %%s%%s', attname, format_type(atttypid, NULL),
              ' DEFAULT ' || pg_get_expr(adbin, adrelid)),
       'ALTER TABLE public.schema_migrations RENAME TO schema_migrations_before;'
FROM pg_attribute JOIN version_table v ON v.oid = attrelid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attnum > 0 AND NOT attisdropped
  AND (attname::text, format_type(atttypid, NULL), coalesce(pg_get_expr(adbin, adrelid), '')) NOT IN (
      ('version', 'text', ''), ('version', 'character varying', ''), ('checksum', 'text', ''),
      ('applied_at', 'timestamp with time zone', ''), ('applied_at', 'timestamp with time zone', 'now()'),
      ('duration_ms', 'integer', ''), ('applied_by', 'text', ''), ('applied_by', 'text', 'SESSION_USER'));

-- name: list_bookkeeping
-- Posduif's own tables where they exist already, with their owner.
SELECT 'public.' || quote_ident(relname) AS name, pg_get_userbyid(relowner)::text AS owner FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relname IN ('schema_migrations', 'posduif_migration_progress')
  AND pg_get_userbyid(relowner) <> %(admin)s;

-- name: list_noted
-- The versions that a version table of whatever origin notes, with the checksum where it has one.
SELECT version::text AS version, to_jsonb(m) ->> 'checksum' AS checksum FROM public.schema_migrations m ORDER BY 1;

-- name: list_roles
-- Every role that owns something or was granted something in this database, or is among %(owners)s, with what it may do
-- here, by whatever way; *may* says whether this login may act for it.
SELECT r.rolname::text AS role, r.rolsuper AS super, pg_has_role(session_user, r.oid, 'USAGE') AS may,
       array_remove(ARRAY[CASE WHEN has_database_privilege(r.oid, d.oid, 'CONNECT') THEN 'CONNECT' END,
                          CASE WHEN has_database_privilege(r.oid, d.oid, 'TEMPORARY') THEN 'TEMPORARY' END], NULL) AS database,
       array_remove(ARRAY[CASE WHEN has_schema_privilege(r.oid, 'public', 'USAGE') THEN 'USAGE' END,
                          CASE WHEN has_schema_privilege(r.oid, 'public', 'CREATE') THEN 'CREATE' END], NULL) AS schema
FROM pg_roles r, pg_database d
WHERE d.datname = current_database() AND r.rolname !~ '^pg_' AND r.rolname <> ALL (%(ours)s::text[])
  AND (r.rolname = ANY (%(owners)s::text[]) OR r.oid IN (
      SELECT refobjid FROM pg_shdepend
      WHERE refclassid = 'pg_authid'::regclass
        AND (dbid = d.oid OR dbid = 0 AND classid = 'pg_database'::regclass AND objid = d.oid)))
ORDER BY 1;

-- name: complete_noted
-- Gives an applied version the checksum that another tool did not note.
UPDATE public.schema_migrations SET checksum = %(checksum)s WHERE version = %(version)s AND checksum IS NULL;
