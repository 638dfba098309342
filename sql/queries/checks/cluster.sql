-- needs: nothing

-- name: describe_cluster
-- The version of one server, whether the session, or else its login, may see what other roles' sessions do,
-- and how the server spells its limit of the WAL that slots keep (in MiB, -1 for none).
SELECT current_setting('server_version') AS version,
       (SELECT count(*) FROM pg_replication_slots)::int AS slots,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS monitor,
       pg_has_role(session_user, 'pg_read_all_stats', 'USAGE') AS login_monitors,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS slot_limit;

-- name: measure_replication
-- How many replicas a server has, and how far the slowest is behind; hidden from roles that may not monitor.
SELECT count(*)::int AS replicas,
       max(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                ELSE pg_current_wal_lsn() END, replay_lsn))::bigint AS replication_lag_bytes
FROM pg_stat_replication;

-- name: list_slots
-- Replication slots with the WAL that each keeps the server from recycling.
SELECT slot_name::text AS slot, coalesce(database, '')::text AS database, active, slot_type = 'logical' AS logical,
       wal_status = 'lost' AS lost,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            ELSE pg_current_wal_lsn() END, restart_lsn)::bigint AS retained_bytes
FROM pg_replication_slots ORDER BY 1;

-- name: list_engine_sessions
-- The engines' roles with a connection limit, and how many of it are in use.
SELECT r.rolname::text AS role, r.rolconnlimit AS allowed, count(*)::int AS used
FROM pg_roles r JOIN pg_stat_activity a ON a.usesysid = r.oid
WHERE r.rolname LIKE '%\_engine' AND r.rolconnlimit > 0 AND a.backend_type IS DISTINCT FROM 'parallel worker'
GROUP BY 1, 2 ORDER BY 1;

-- name: list_shut_out
-- Tenants whose engine is kept out otherwise than by NOLOGIN: its role is missing or not in posduif_engine, which has the
-- rights on the tables; by the rights of the database, by a limit of no connection, by a password that ran out. Roles have
-- no CONNECT by a group here, and PUBLIC is told by others.
SELECT d.datname::text AS tenant,
       CASE WHEN r.oid IS NULL THEN 'its role is missing'
            WHEN NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid
                             AND m.roleid = to_regrole('posduif_engine')) THEN 'its role is not in posduif_engine'
            WHEN r.rolvaliduntil < now() THEN 'its password is no longer valid'
            WHEN r.rolconnlimit = 0 THEN 'its role may have no connection'
            ELSE 'its role has no right to connect to the database' END AS why,
       CASE WHEN r.rolvaliduntil < now() THEN format('ALTER ROLE %I VALID UNTIL ''infinity'';', r.rolname) END AS fix
FROM pg_database d LEFT JOIN pg_roles r ON r.rolname = d.datname || '_engine'
WHERE d.datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin') AND r.rolcanlogin IS NOT FALSE
  AND r.rolsuper IS NOT TRUE AND NOT starts_with(d.datname, 'posduif')
  AND (r.rolvaliduntil < now() OR r.rolconnlimit = 0
       OR NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.roleid = to_regrole('posduif_engine'))
       OR NOT EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x
                      WHERE x.grantee IN (0, r.oid) AND x.privilege_type = 'CONNECT'))
ORDER BY 1;

-- name: list_transactions
-- Clients' transactions, the oldest first: how old, and how long idle, in seconds; whether it waits for a lock, and
-- whether a backup's program runs it.
SELECT a.pid, a.usename::text AS role, coalesce(a.datname, '')::text AS database, a.application_name AS application,
       a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age,
       CASE WHEN a.state LIKE 'idle in transaction%' THEN extract(epoch FROM clock_timestamp() - a.state_change) END::float8 AS idle,
       a.wait_event_type = 'Lock' AS waits, a.application_name ~ '^(pg_dump|pg_restore|pg_basebackup|posduif backup)' AS backup
FROM pg_stat_activity a
WHERE a.backend_type = 'client backend' AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start LIMIT 1000;

-- name: list_blocked
-- Sessions that wait for a lock, for how many seconds, and those that are in their way.
WITH waiting AS MATERIALIZED (
    SELECT pid, min(waitstart) AS since, pg_blocking_pids(pid) AS blockers FROM pg_locks WHERE NOT granted GROUP BY pid
)
SELECT a.pid, a.usename::text AS role, coalesce(a.datname, '')::text AS database, a.application_name AS application,
       a.state, w.blockers, extract(epoch FROM clock_timestamp() - w.since)::float8 AS waited
FROM pg_stat_activity a LEFT JOIN waiting w ON w.pid = a.pid
WHERE w.pid IS NOT NULL OR a.pid IN (SELECT unnest(blockers) FROM waiting);

-- name: read_archiver
-- How WAL archiving goes, where it is on: whether there is nothing that archives, whether the last try failed, and for how
-- many seconds nothing succeeded.
SELECT current_setting('archive_command') = '' AND coalesce(current_setting('archive_library', true), '') = '' AS unset,
       last_failed_time > coalesce(last_archived_time, '-infinity') AS failing, last_failed_wal AS wal,
       extract(epoch FROM clock_timestamp() - coalesce(last_archived_time, stats_reset))::float8 AS age
FROM pg_stat_archiver WHERE current_setting('archive_mode') <> 'off';

-- name: list_ages
-- The databases with the oldest transaction ids that are not frozen, in transactions and in multixacts, and whether
-- autovacuum should have frozen them.
SELECT datname::text AS database, age(datfrozenxid) AS xids, mxid_age(datminmxid) AS multixacts,
       age(datfrozenxid) > 1.1 * current_setting('autovacuum_freeze_max_age')::bigint
           OR mxid_age(datminmxid) > 1.1 * current_setting('autovacuum_multixact_freeze_max_age')::bigint AS late
FROM pg_database ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC LIMIT 1000;

-- name: list_horizons
-- What keeps dead rows from being removed, the oldest first, with its age in transactions.
SELECT * FROM (
    SELECT 'session' AS kind, a.pid::text AS name, a.usename::text AS role, coalesce(a.datname, '')::text AS database,
           a.application_name AS application, a.state, greatest(age(a.backend_xmin), age(a.backend_xid)) AS age
    FROM pg_stat_activity a WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT 'replica', pid::text, usename::text, '', application_name, state, age(backend_xmin) FROM pg_stat_replication
    UNION ALL
    SELECT 'prepared transaction', gid, owner::text, database::text, '', '', age(transaction) FROM pg_prepared_xacts
    UNION ALL
    SELECT 'slot', slot_name::text, '', coalesce(database, '')::text, '', CASE WHEN active THEN 'active' ELSE 'inactive' END,
           greatest(age(xmin), age(catalog_xmin)) FROM pg_replication_slots
) AS h WHERE age IS NOT NULL ORDER BY age DESC LIMIT 5;

-- name: list_checksum_failures
-- Databases in which pages with a wrong checksum were read.
SELECT coalesce(datname, '')::text AS database, checksum_failures AS failures
FROM pg_stat_database WHERE checksum_failures > 0 ORDER BY 2 DESC;

-- name: list_unsafe_settings
-- Settings that lose data in a crash, and those that a restart would change. After a reload PostgreSQL takes one for
-- pending that its command line overrides, as it will after a restart, too.
SELECT name, setting, pending_restart AND source <> 'command line' AS pending_restart FROM pg_settings
WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' OR pending_restart AND source <> 'command line' ORDER BY 1;

-- name: list_invalid_databases
-- Databases that are half dropped, and those that no session can enter. Templates and posduif's own are not meant, nor is
-- one that is being dropped at this moment, or that posduif is making: it has no record yet.
SELECT d.datname::text AS database, d.datconnlimit = -2 AS half_dropped FROM pg_database d
WHERE (d.datconnlimit = -2 OR NOT d.datallowconn) AND NOT d.datistemplate AND NOT starts_with(d.datname, 'posduif')
  AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass
                  AND l.objid = d.oid AND l.mode = 'AccessExclusiveLock')
  AND (d.datconnlimit = -2 OR d.datdba IS DISTINCT FROM to_regrole('posduif_admin')
       OR shobj_description(d.oid, 'pg_database') IS NOT NULL)
ORDER BY 1;

-- name: find_statements
-- The schema of pg_stat_statements, where that is installed in this database and loaded by the server.
SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_stat_statements'
  AND current_setting('shared_preload_libraries') LIKE '%pg_stat_statements%';

-- name: measure_sizes
-- The bytes of each tenant's database; the file system is walked for them.
SELECT datname::text AS tenant, pg_database_size(oid) AS size_bytes FROM pg_database
WHERE datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin') AND datconnlimit <> -2
  AND NOT starts_with(datname, 'posduif');

-- name: find_lockers
-- The sessions that have a table of the tenant, or a catalog, for themselves alone, or wait for that before all others.
SELECT coalesce(l.pid, 0), coalesce(a.usename, 'a prepared transaction')::text, a.application_name,
       CASE WHEN bool_or(l.granted) THEN a.state ELSE 'waiting' END
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND (l.relation < 16384 OR l.relation IN (to_regclass('public.users'), to_regclass('public.messages'),
                                            to_regclass('public.sync_metadata'),
                                            to_regclass('public.enrollment_tokens')))
GROUP BY l.pid, a.usename, a.application_name, a.state ORDER BY bool_or(l.granted) DESC, l.pid;
