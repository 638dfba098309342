-- needs: nothing

-- name: find_database
-- A database that may be taken in: who could have written its comment, and whether this login could take it over.
-- *path* is a search_path that would put other people's functions before PostgreSQL's in every new session.
-- *trusted* says that only administrators could have written the comment, *powerful* that to join the owner would be to
-- be a superuser, or near it.
SELECT (SELECT rolsuper OR rolname = 'posduif_admin' FROM pg_roles WHERE oid = d.datdba) AS trusted,
       pg_get_userbyid(d.datdba) ~ '^pg_' OR EXISTS
           (SELECT FROM pg_roles s WHERE s.rolsuper AND pg_has_role(d.datdba, s.oid, 'MEMBER')) AS powerful,
       d.datistemplate AS template,
       (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = session_user) AS may_own,
       (SELECT s.setting FROM pg_db_role_setting c, unnest(c.setconfig) s (setting)
        WHERE c.setdatabase = d.oid AND s.setting ~ '^search_path=.*pg_catalog'
          AND s.setting !~ '^search_path=[ "]*pg_catalog\M' LIMIT 1) AS path
FROM pg_database d WHERE d.datname = %(name)s;

-- name: find_tables
-- Those of some tables that exist, or a view in their place.
SELECT t FROM unnest(%(tables)s::text[]) t JOIN pg_class c ON c.oid = to_regclass(t)
WHERE c.relkind IN ('r', 'p', 'v') ORDER BY t;

-- name: was_made_by_posduif
-- Whether a database and all in it belong to posduif_admin and superusers, and its engine's role was made by
-- posduif_admin: since PostgreSQL 16 who makes a role has the ADMIN OPTION on it, and cannot give that away.
SELECT NOT EXISTS (
           SELECT FROM pg_shdepend s JOIN pg_roles o ON o.oid = s.refobjid JOIN pg_database d ON d.oid = s.dbid
           WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND d.datname = %(name)s
             AND NOT o.rolsuper AND o.rolname <> 'posduif_admin')
       AND EXISTS (SELECT FROM pg_database d JOIN pg_roles o ON o.oid = d.datdba
                   WHERE d.datname = %(name)s AND (o.rolsuper OR o.rolname = 'posduif_admin'))
       AND (current_setting('server_version_num')::int < 160000 OR coalesce((
           SELECT bool_or(m.member = to_regrole('posduif_admin')) AND bool_and(m.member = to_regrole('posduif_admin') OR o.rolsuper)
           FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN pg_roles o ON o.oid = m.member
           WHERE m.admin_option AND r.rolname = %(name)s || '_engine'), false));

-- name: list_open_transactions
-- Other people's transactions in this database that have written something and may still commit it, and those that were
-- prepared; PostgreSQL shows every role these locks.
SELECT format('of %s (pid %s)', a.usename, a.pid)
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'transactionid' AND l.granted AND a.datname = current_database() AND a.usename IS NOT NULL
  AND a.pid <> pg_backend_pid()
UNION
SELECT format('of %s (prepared as %L)', owner, gid) FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY 1;

-- name: list_event_triggers
-- Event triggers, which run with the rights of the role that alters the schema; each with the SQL that removes it.
SELECT format('event trigger %I would run with an administrator''s rights', evtname), format('DROP EVENT TRIGGER %I', evtname)
FROM pg_event_trigger WHERE evtenabled <> 'D';

-- name: list_obstacles
-- What makes schema_migrations no version table as dbmate or posduif make one; each with the SQL that removes it.
WITH version_table AS (
    SELECT * FROM pg_class WHERE oid = to_regclass('public.schema_migrations')
)
SELECT 'schema_migrations has row level security',
       'ALTER TABLE public.schema_migrations DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY'
FROM version_table WHERE relrowsecurity
UNION ALL
SELECT format('schema_migrations is another tool''s: its column %I is %s%s', attname, format_type(atttypid, NULL),
              ' DEFAULT ' || pg_get_expr(adbin, adrelid)),
       'ALTER TABLE public.schema_migrations RENAME TO schema_migrations_before'
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
-- here, by whatever way. *may* says whether this login may act for it, *powerful* that to join it would be to be a
-- superuser, or near it.
SELECT r.rolname::text AS role, r.rolsuper AS super, pg_has_role(session_user, r.oid, 'USAGE') AS may,
       r.rolname ~ '^pg_' OR EXISTS (SELECT FROM pg_roles s WHERE s.rolsuper AND pg_has_role(r.oid, s.oid, 'MEMBER')) AS powerful,
       array_remove(ARRAY[CASE WHEN has_database_privilege(r.oid, d.oid, 'CONNECT') THEN 'CONNECT' END,
                          CASE WHEN has_database_privilege(r.oid, d.oid, 'TEMPORARY') THEN 'TEMPORARY' END], NULL) AS database,
       array_remove(ARRAY[CASE WHEN has_schema_privilege(r.oid, 'public', 'USAGE') THEN 'USAGE' END,
                          CASE WHEN has_schema_privilege(r.oid, 'public', 'CREATE') THEN 'CREATE' END], NULL) AS schema
FROM pg_roles r, pg_database d
WHERE d.datname = current_database() AND r.rolname <> ALL (%(ours)s::text[])
  AND (r.rolname = ANY (%(owners)s::text[]) OR r.rolname !~ '^pg_' AND r.oid IN (
      SELECT refobjid FROM pg_shdepend
      WHERE refclassid = 'pg_authid'::regclass
        AND (dbid = d.oid OR dbid = 0 AND classid = 'pg_database'::regclass AND objid = d.oid)))
ORDER BY 1;

-- name: complete_noted
-- Gives an applied version the checksum that another tool did not note.
UPDATE public.schema_migrations SET checksum = %(checksum)s WHERE version = %(version)s AND checksum IS NULL;

-- name: list_zones
-- The time zones of new sessions in this database: login or NULL for all others, zone. The session's own start-up zone
-- tells the server's, unless this login has one of its own: then that one is not known.
WITH settings AS (
    SELECT s.setdatabase, s.setrole, substr(word, 10) AS zone
    FROM pg_db_role_setting s, unnest(s.setconfig) word WHERE word ILIKE 'timezone=%%'
), here AS (
    SELECT oid FROM pg_database WHERE datname = current_database()
), everyone AS (
    SELECT coalesce((SELECT zone FROM settings WHERE setdatabase = here.oid AND setrole = 0),
                    (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone' AND NOT EXISTS (
                        SELECT FROM settings WHERE setrole = (SELECT oid FROM pg_roles WHERE rolname = session_user)))) AS zone
    FROM here
)
SELECT NULL::text AS login, zone FROM everyone WHERE zone IS NOT NULL
UNION
SELECT r.rolname::text, own.zone
FROM here, everyone, pg_roles r
CROSS JOIN LATERAL (SELECT zone FROM settings WHERE setrole = r.oid AND setdatabase IN (here.oid, 0)
                    ORDER BY setdatabase DESC LIMIT 1) own
WHERE r.rolcanlogin AND r.rolname <> session_user AND own.zone IS DISTINCT FROM everyone.zone
  AND (EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = r.oid
                 AND (dbid = here.oid OR dbid = 0 AND classid = 'pg_database'::regclass AND objid = here.oid))
       OR EXISTS (SELECT FROM pg_stat_activity WHERE usesysid = r.oid AND datname = current_database()))
ORDER BY 1 NULLS FIRST;

-- name: find_zone
-- A time zone by its name, in whatever case.
SELECT name FROM pg_timezone_names WHERE lower(name) = lower(%(zone)s);

-- name: list_triggers
-- The triggers of a table that run, and the word that enables each as it is now.
SELECT quote_ident(tgname), CASE tgenabled WHEN 'A' THEN 'ALWAYS ' WHEN 'R' THEN 'REPLICA ' ELSE '' END
FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s) AND NOT tgisinternal AND tgenabled <> 'D' ORDER BY 1;

-- name: list_open_tokens
-- Enrollment tokens that can be used as long as their times count as UTC.
SELECT id::text, to_char(expires_at, 'YYYY-MM-DD HH24:MI:SS') FROM public.enrollment_tokens
WHERE used_at IS NULL AND expires_at > now() AT TIME ZONE 'UTC' ORDER BY expires_at;

-- name: list_logins
-- Logins of other people that own something here, were granted something by name, or are connected: login, whether it
-- is a superuser, the process ids of its sessions. This login's own and those of posduif_admin's members are left out.
SELECT r.rolname::text, r.rolsuper,
       ARRAY(SELECT pid FROM pg_stat_activity WHERE usesysid = r.oid AND datname = current_database() ORDER BY pid)
FROM pg_roles r
WHERE r.rolcanlogin AND r.rolname NOT IN (session_user, current_database() || '_engine')
  AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid AND roleid = to_regrole('posduif_admin'))
  AND (EXISTS (SELECT FROM pg_stat_activity WHERE usesysid = r.oid AND datname = current_database())
       OR r.oid >= 16384 AND EXISTS (
           SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = r.oid
             AND (dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                  OR dbid = 0 AND classid = 'pg_database'::regclass
                     AND objid = (SELECT oid FROM pg_database WHERE datname = current_database()))))
ORDER BY 1;

-- name: find_users
-- The other sessions that have a lock on one of some tables.
SELECT DISTINCT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, ''), coalesce(a.state, '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation IN (SELECT to_regclass(t) FROM unnest(%(tables)s::text[]) t)
ORDER BY a.pid;

-- name: list_own_zones
-- Logins with a time zone of their own, which new sessions of theirs in this database have: login, zone.
SELECT r.rolname::text, (SELECT substr(word, 10) FROM pg_db_role_setting s, unnest(s.setconfig) word
                         WHERE s.setrole = r.oid AND word ILIKE 'timezone=%%'
                           AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                         ORDER BY s.setdatabase DESC LIMIT 1)
FROM pg_roles r WHERE r.rolname = ANY (%(logins)s);
