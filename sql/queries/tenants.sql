-- needs: nothing

-- name: list_tenants
-- Everything that bears our mark on this server: databases of posduif_admin, and engine roles whose database
-- is missing. One row a name; what the marks mean is decided by the caller, row by row.
SELECT coalesce(d.datname, left(r.rolname, -7))::text AS tenant,
       d.oid IS NOT NULL OR EXISTS (SELECT FROM pg_database WHERE datname = left(r.rolname, -7)) AS has_database,
       coalesce(pg_get_userbyid(d.datdba) = 'posduif_admin', false) AS ours,
       CASE WHEN pg_get_userbyid(d.datdba) = 'posduif_admin' THEN shobj_description(d.oid, 'pg_database') END AS record,
       d.datallowconn AS open,
       d.datconnlimit AS connection_limit,
       r.oid IS NOT NULL AS has_role,
       shobj_description(r.oid, 'pg_authid') AS intent,
       coalesce(e.sessions, 0)::int AS engine_sessions,
       r.rolcanlogin AS may_log_in,
       CASE WHEN %(sizes)s AND d.datconnlimit <> -2 THEN pg_database_size(d.oid) END AS size_bytes
FROM (SELECT * FROM pg_database
      WHERE (%(name)s::text IS NULL OR datname = %(name)s)
        AND (datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin') OR datname = %(name)s)
        AND NOT starts_with(datname, 'posduif')) d -- reserved: templates and scratch databases
FULL JOIN (SELECT r.oid, r.rolname, r.rolcanlogin FROM pg_roles r
           WHERE r.rolname LIKE '%%\_engine' AND (%(name)s::text IS NULL OR r.rolname = %(name)s || '_engine')
             AND shobj_description(r.oid, 'pg_authid') LIKE 'posduif {%%'
             -- Since PostgreSQL 16 who makes a role has ADMIN OPTION on it for good: a stranger's is no tenant's.
             AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
                             WHERE m.roleid = r.oid AND m.admin_option AND NOT h.rolsuper AND h.rolname <> 'posduif_admin'
                               AND current_setting('server_version_num')::int >= 160000)) r
       ON r.rolname = d.datname || '_engine'
LEFT JOIN (SELECT usename, count(*) AS sessions FROM pg_stat_activity
           WHERE usename IS NOT NULL AND (%(name)s::text IS NULL OR usename = %(name)s || '_engine') GROUP BY usename) e
       ON e.usename = coalesce(d.datname, left(r.rolname, -7)) || '_engine'
WHERE %(name)s::text IS NULL OR coalesce(d.datname, left(r.rolname, -7)) = %(name)s
ORDER BY 1;

-- name: count_tenants
-- How many databases with a record the server has, and, which may take long, the bytes of those that may be looked into.
SELECT count(*) AS tenants,
       CASE WHEN %(sizes)s THEN coalesce(sum(CASE WHEN d.datconnlimit <> -2
           AND (pg_has_role('posduif_admin', 'USAGE') OR has_database_privilege(d.oid, 'CONNECT'))
           THEN pg_database_size(d.oid) END), 0)::bigint END AS size_bytes
FROM pg_database d
WHERE d.datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin') AND NOT starts_with(d.datname, 'posduif')
  AND shobj_description(d.oid, 'pg_database') LIKE 'posduif {%%';

-- name: list_used_names
-- What a new tenant's database or its engine's role may be in conflict with.
SELECT datname::text FROM pg_database UNION SELECT rolname::text FROM pg_roles;

-- name: find_traces
-- What stands under a tenant's name, ours or not: its database and its engine's role.
SELECT (SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = %(name)s) AS owner,
       (SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %(name)s) AS record,
       (SELECT datallowconn FROM pg_database WHERE datname = %(name)s) AS open,
       (SELECT datconnlimit FROM pg_database WHERE datname = %(name)s) AS connection_limit,
       (SELECT oid IS NOT NULL FROM pg_roles WHERE rolname = %(role)s) AS has_role,
       (SELECT shobj_description(oid, 'pg_authid') FROM pg_roles r WHERE rolname = %(role)s
          AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
                             WHERE m.roleid = r.oid AND m.admin_option AND NOT h.rolsuper AND h.rolname <> 'posduif_admin'
                               AND current_setting('server_version_num')::int >= 160000)) AS intent,
       clock_timestamp() AS at;

-- name: count_loss
-- What dropping this tenant would destroy.
SELECT (SELECT count(*) FROM public.users) AS users,
       (SELECT count(*) FROM public.users WHERE device_id IS NOT NULL) AS devices,
       (SELECT count(*) FROM public.messages) AS messages,
       (SELECT max(greatest(created_at, synced_at, read_at)) FROM public.messages) AT TIME ZONE 'UTC' AS last_activity;

-- name: find_ties
-- What keeps a role from being dropped once the database of its name is gone: where it owns or was granted something.
SELECT DISTINCT coalesce(d.datname::text, 'the whole server')
FROM pg_shdepend s LEFT JOIN pg_database d ON d.oid = s.dbid
WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = to_regrole(quote_ident(%(role)s))
  AND s.classid <> 'pg_auth_members'::regclass
  AND coalesce(d.datname, (SELECT o.datname FROM pg_database o WHERE s.classid = 'pg_database'::regclass AND o.oid = s.objid),
               '') <> %(name)s
ORDER BY 1;

-- name: find_sessions
-- The sessions in a tenant's database, or of its engine's role, other than this one.
SELECT pid, coalesce(usename, '')::text AS role, coalesce(application_name, '') AS application,
       coalesce(state, backend_type) AS state
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND (datname = %(database)s OR usename = %(role)s)
ORDER BY pid;

-- name: end_role
-- Ends all sessions of a role, wherever they are, waiting for each up to %(wait)s milliseconds, and counts them.
WITH found AS MATERIALIZED ( -- or others' sessions might be ended before they are told apart
    SELECT pid FROM pg_stat_activity WHERE usename = %(role)s AND pid <> pg_backend_pid()
)
SELECT count(*) FROM found WHERE pg_terminate_backend(pid, %(wait)s);

-- name: end_session
-- Ends one session; false when it was gone already.
SELECT pg_terminate_backend(%(pid)s, 5000);

-- name: find_strangers
-- The clients in a tenant's database whose login is in none of posduif's groups, and is not this session's own.
SELECT pid, usename::text, coalesce(application_name, '')
FROM pg_stat_activity
WHERE datname = %(database)s AND usename NOT IN (session_user, 'posduif_admin', %(database)s || '_engine')
  AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                  WHERE m.member = usesysid AND g.rolname = ANY (%(groups)s))
ORDER BY pid;

-- name: may_log_in
-- Whether a role may log in.
SELECT rolcanlogin FROM pg_roles WHERE rolname = %(role)s;

-- name: find_slots
-- The replication slots of a tenant's database, with the process that reads each.
SELECT slot_name::text AS slot, active_pid AS pid
FROM pg_replication_slots WHERE database = %(database)s ORDER BY 1;
