-- needs: nothing

-- name: describe_server
-- What a server is, what the login may there, and its settings, without its connections and tenants.
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS version_number,
       session_user::text AS role,
       (SELECT rolname::text FROM pg_roles WHERE rolname = 'posduif_admin') AS record_owner,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser,
       pg_is_in_recovery() AS is_standby,
       has_database_privilege('public', current_database(), 'CONNECT') AS is_open,
       pg_has_role(session_user, (SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE') AS is_owner,
       current_setting('max_wal_senders')::int AS wal_senders,
       current_setting('ssl')::bool AS ssl,
       current_setting('listen_addresses') AS listen_addresses;

-- name: list_members
-- Which roles have the rights of posduif's roles, and which may give them to others.
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
  AND EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.roleid = to_regrole('posduif_engine'))
ORDER BY 1;

-- name: find_unmonitored
-- Which of our roles with members cannot see what other roles' sessions do, and whether this login may give them that.
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
