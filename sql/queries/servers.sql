-- needs: nothing

-- name: measure_connections
-- How many connections the server allows, keeps back from ordinary roles, leaves to these, and has in use. Those in use
-- are counted where every role sees all of them.
SELECT total AS max_connections, reserved, total - reserved AS allowed, used
FROM (SELECT current_setting('max_connections')::int AS total,
             current_setting('superuser_reserved_connections')::int
                 + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
             (SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database) AS used) AS s;

-- name: describe_server
-- One server in one row, but for its connections and tenants.
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS version_number,
       session_user::text AS role,
       (SELECT rolname::text FROM pg_roles WHERE rolname = 'posduif_admin') AS record_owner,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser,
       pg_is_in_recovery() AS is_standby,
       has_database_privilege('public', current_database(), 'CONNECT') AS is_open,
       pg_has_role(session_user, (SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE') AS is_owner;

-- name: find_room
-- What bears on how many engines the server has room for beside its connections, and how they reach it.
SELECT current_setting('max_wal_senders')::int AS wal_senders,
       current_setting('ssl')::bool AS ssl,
       current_setting('listen_addresses') AS listen_addresses,
       has_database_privilege('public', current_database(), 'CONNECT') AS is_open,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser,
       pg_has_role(session_user, (SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE') AS owns;
