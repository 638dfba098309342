-- needs: nothing

-- name: list_used_names
-- What a new tenant's database or its engine's role may be in conflict with.
SELECT datname::text FROM pg_database UNION SELECT rolname::text FROM pg_roles;

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

-- name: find_slots
-- The replication slots of a tenant's database, with the process that reads each.
SELECT slot_name::text AS slot, active_pid AS pid
FROM pg_replication_slots WHERE database = %(database)s ORDER BY 1;

-- name: find_connectable
-- Other people's roles that may connect to a tenant's database by a right of their own; PUBLIC is everyone.
SELECT coalesce(r.rolname, 'PUBLIC')::text
FROM pg_database d CROSS JOIN LATERAL aclexplode(d.datacl) x LEFT JOIN pg_roles r ON r.oid = x.grantee
WHERE d.datname = %(database)s AND x.privilege_type = 'CONNECT' AND x.grantee <> d.datdba
  AND coalesce(r.rolname, 'PUBLIC') NOT IN (SELECT unnest(%(groups)s::text[]) UNION SELECT %(database)s || '_engine')
ORDER BY 1;

-- name: find_unendable
-- The clients in a tenant's database that this session may not end, but for those with one of these process ids.
SELECT a.pid, a.usename::text, coalesce(a.application_name, ''), coalesce(a.state, '')
FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
WHERE a.datname = %(database)s AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
  AND a.pid <> ALL (%(pids)s) AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  AND (r.rolsuper OR NOT (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))
ORDER BY a.pid;
