-- needs: nothing

-- name: list_tenants
-- Everything that has posduif's mark on this server: databases of posduif_admin, and engine roles without a database. Of
-- one name it is what is there, with or without a mark. One row per name; the caller decides what the marks mean.
SELECT coalesce(d.datname, left(r.rolname, -7))::text AS tenant,
       d.oid IS NOT NULL OR EXISTS (SELECT FROM pg_database WHERE datname = left(r.rolname, -7)) AS has_database,
       pg_get_userbyid(d.datdba)::text AS owner,
       coalesce(pg_get_userbyid(d.datdba) = 'posduif_admin', false) AS ours,
       shobj_description(d.oid, 'pg_database') AS record,
       d.datallowconn AS open,
       d.datconnlimit AS connection_limit,
       r.oid IS NOT NULL AS has_role,
       r.intent,
       coalesce(e.sessions, 0)::int AS engine_sessions,
       CASE WHEN r.intent IS NOT NULL THEN r.rolcanlogin END AS may_log_in,
       CASE WHEN %(sizes)s AND d.datconnlimit <> -2 THEN pg_database_size(d.oid) END AS size_bytes,
       CASE WHEN %(name)s::text IS NOT NULL THEN clock_timestamp() END AS at
FROM (SELECT * FROM pg_database
      WHERE (%(name)s::text IS NULL OR datname = %(name)s)
        AND (datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin') OR datname = %(name)s)
        AND NOT starts_with(datname, 'posduif')) d -- reserved: templates and scratch databases
FULL JOIN (SELECT r.oid, r.rolname, r.rolcanlogin, i.intent
           FROM pg_roles r LEFT JOIN LATERAL (
               SELECT c.intent FROM shobj_description(r.oid, 'pg_authid') c (intent)
               WHERE c.intent LIKE 'posduif {%%'
                 -- Since PostgreSQL 16 the role that makes another has ADMIN OPTION on it for good. An engine's role that
                 -- another login made is no tenant's. Nor is one that posduif_admin may not alter and that is in none of
                 -- posduif's groups: the login that made it was dropped.
                 AND (current_setting('server_version_num')::int < 160000
                      OR NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
                                     WHERE m.roleid = r.oid AND m.admin_option AND NOT h.rolsuper
                                       AND h.rolname <> 'posduif_admin')
                         AND EXISTS (SELECT FROM pg_auth_members m
                                     WHERE m.roleid = r.oid AND m.admin_option AND m.member = to_regrole('posduif_admin')
                                        OR m.member = r.oid AND m.roleid = to_regrole('posduif_engine')))) i ON true
           WHERE r.rolname = %(role)s OR %(role)s::text IS NULL AND r.rolname LIKE '%%\_engine') r
       ON r.rolname = d.datname || '_engine'
LEFT JOIN (SELECT usename, count(*) AS sessions FROM pg_stat_activity
           WHERE usename IS NOT NULL AND (%(role)s::text IS NULL OR usename = %(role)s) GROUP BY usename) e
       ON e.usename = coalesce(d.datname, left(r.rolname, -7)) || '_engine'
WHERE %(name)s::text IS NOT NULL OR d.oid IS NOT NULL OR r.intent IS NOT NULL
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

-- name: measure_connections
-- How many connections the server allows, keeps back from ordinary roles, leaves to these, and has in use. Those in use
-- are counted where every role sees all of them.
SELECT total AS max_connections, reserved, total - reserved AS allowed, used
FROM (SELECT current_setting('max_connections')::int AS total,
             current_setting('superuser_reserved_connections')::int
                 + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
             (SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database) AS used) AS s;

-- name: list_asides
-- Databases that a restore made or set aside: their comment says of whom.
SELECT d.datname::text AS database, shobj_description(d.oid, 'pg_database') AS record, d.datallowconn AS open,
       CASE WHEN d.datallowconn AND has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END AS size_bytes,
       EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid AND a.backend_type = 'client backend') AS busy
FROM pg_database d
WHERE d.datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin')
  AND (starts_with(d.datname, 'posduif_aside_') OR starts_with(d.datname, 'posduif_restore_'))
ORDER BY 1;
