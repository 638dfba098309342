-- name: describe_server
-- One server in one row.
SELECT current_setting('server_version') AS version,
       (SELECT count(*) FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
        WHERE r.rolname = 'posduif_admin'
          AND NOT starts_with(d.datname, 'posduif')
          AND shobj_description(d.oid, 'pg_database') LIKE 'posduif {%') AS tenants,
       (SELECT sum(numbackends)::int FROM pg_stat_database) AS connections,
       current_setting('max_connections')::int AS max_connections,
       session_user::text AS role;
