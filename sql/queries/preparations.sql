-- needs: nothing

-- name: list_members
-- Who may use the rights of posduif's roles, and who may give them to others.
SELECT g.rolname::text AS role,
       coalesce(string_agg(DISTINCT h.rolname, ', ') FILTER (WHERE m.admin_option AND h.rolname <> 'posduif_admin'), '') AS holders,
       coalesce(string_agg(DISTINCT h.rolname, ', ') FILTER (WHERE h.rolname !~ '_engine$' AND h.rolname <> 'posduif_admin'), '') AS members
FROM pg_roles g JOIN pg_auth_members m ON m.roleid = g.oid JOIN pg_roles h ON h.oid = m.member
WHERE g.rolname = ANY (%(roles)s) GROUP BY 1 ORDER BY 1;

-- name: find_unadministered
-- Roles of engines that posduif_admin cannot alter: on a server that was upgraded from PostgreSQL 15 it lacks ADMIN OPTION.
SELECT r.rolname::text FROM pg_roles r
WHERE r.rolname LIKE '%\_engine' AND shobj_description(r.oid, 'pg_authid') LIKE 'posduif {%'
  AND current_setting('server_version_num')::int >= 160000
  AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.admin_option
                  AND m.member = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin'))
  AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
                  WHERE m.roleid = r.oid AND m.admin_option AND NOT h.rolsuper AND h.rolname <> 'posduif_admin')
ORDER BY 1;

-- name: find_unmonitored
-- Which of our roles that anyone uses cannot see what other people's sessions do, and whether this login could let them.
SELECT coalesce(array_agg(r.rolname::text ORDER BY 1) FILTER (WHERE NOT pg_has_role(r.oid, 'pg_monitor', 'USAGE')), '{}') AS roles,
       (SELECT rolsuper OR rolcreaterole AND current_setting('server_version_num')::int < 160000
                OR pg_has_role(session_user, 'pg_monitor', 'MEMBER WITH ADMIN OPTION')
        FROM pg_roles WHERE rolname = session_user) AS may
FROM pg_roles r
WHERE r.rolname = 'posduif_admin'
   OR r.rolname = 'posduif_health' AND EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
                                               WHERE m.roleid = r.oid AND h.rolname <> 'posduif_admin');

-- name: find_login
-- A role of this name: whether it may log in, is a superuser, has our comment, and is a member of the administrators.
SELECT rolcanlogin AS may_log_in, rolsuper AS super, shobj_description(oid, 'pg_authid') AS comment,
       pg_has_role(oid, 'posduif_admin', 'USAGE') AS member
FROM pg_roles WHERE rolname = %(name)s;

-- name: look_at_scratch
-- What a scratch database was made as.
SELECT datallowconn AS open, datconnlimit AS connection_limit, shobj_description(oid, 'pg_database') AS comment
FROM pg_database WHERE datname = %(name)s;

-- name: list_scratch
-- What proofs that were killed left behind.
SELECT datname::text, true FROM pg_database
WHERE starts_with(datname, %(prefix)s) AND datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin')
UNION ALL
SELECT rolname::text, false FROM pg_roles WHERE starts_with(rolname, %(prefix)s);

-- name: try_lock
-- Whether a lock of ours is free; it is given back when the session ends.
SELECT pg_try_advisory_lock(%(class)s, hashtext(%(subject)s));
