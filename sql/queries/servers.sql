-- needs: nothing

-- name: describe_server
-- One server in one row.
SELECT current_setting('server_version') AS version,
       (SELECT count(*) FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
        WHERE r.rolname = 'posduif_admin'
          AND NOT starts_with(d.datname, 'posduif')
          AND shobj_description(d.oid, 'pg_database') LIKE 'posduif {%') AS tenants,
       (SELECT sum(numbackends)::int FROM pg_stat_database) AS connections,
       current_setting('max_connections')::int AS max_connections,
       session_user::text AS role,
       (SELECT rolname::text FROM pg_roles WHERE rolname = 'posduif_admin') AS record_owner,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser,
       pg_is_in_recovery() AS is_standby,
       has_database_privilege('public', current_database(), 'CONNECT') AS is_open;

-- name: measure_tenants
-- The bytes that tenants take; it walks the file system, so it may take long.
SELECT coalesce(sum(pg_database_size(d.oid)), 0)::bigint FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
WHERE r.rolname = 'posduif_admin' AND d.datconnlimit <> -2 AND NOT starts_with(d.datname, 'posduif')
  AND (pg_has_role('posduif_admin', 'USAGE') OR has_database_privilege(d.oid, 'CONNECT'));

-- name: find_room
-- What bears on how many engines the server has room for, and how they reach it.
SELECT current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int
           + coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
       current_setting('max_wal_senders')::int AS wal_senders,
       current_setting('ssl')::bool AS ssl,
       current_setting('listen_addresses') AS listen_addresses,
       (SELECT count(*)::int FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
        WHERE r.rolname = 'posduif_admin' AND NOT starts_with(d.datname, 'posduif')) AS tenants,
       has_database_privilege('public', current_database(), 'CONNECT') AS is_open,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser,
       pg_has_role(session_user, (SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE') AS owns;
