-- needs: 0001

-- name: describe_server
-- Version and replication of one server.
SELECT current_setting('server_version') AS version,
       (SELECT count(*) FROM pg_replication_slots) AS slots,
       (SELECT count(*) FROM pg_stat_replication) AS replicas,
       (SELECT max(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                        ELSE pg_current_wal_lsn() END, replay_lsn))::bigint
        FROM pg_stat_replication) AS replication_lag_bytes;

-- name: list_slots
-- Replication slots with the WAL that each keeps the server from recycling.
SELECT slot_name::text AS slot, coalesce(database, '')::text AS database, active,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            ELSE pg_current_wal_lsn() END, restart_lsn)::bigint AS retained_bytes
FROM pg_replication_slots ORDER BY 1;

-- name: measure_tenant
-- The connections to one tenant, other than this one, and its size.
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()) AS connections,
       pg_database_size(current_database()) AS size_bytes;

-- name: count_users
-- The users of one tenant.
SELECT count(*) AS users FROM public.users;

-- name: count_messages
-- The messages of one tenant, and those that wait for their recipients.
SELECT count(*) AS messages, count(*) FILTER (WHERE status = 'pending_sync') AS pending_sync FROM public.messages;

-- name: count_errors
-- The devices whose last synchronisation failed.
SELECT count(*) AS sync_errors FROM public.sync_metadata WHERE sync_status = 'error';

-- name: list_tables
-- Tables with indexes and TOAST, by PostgreSQL's own page counts: asking for exact sizes would wait for locks.
SELECT c.relname::text AS table,
       (c.relpages + coalesce((SELECT sum(i.relpages) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
                               WHERE x.indrelid = c.oid), 0)
        + coalesce((SELECT t.relpages FROM pg_class t WHERE t.oid = c.reltoastrelid), 0))::bigint
           * current_setting('block_size')::bigint AS bytes,
       greatest(c.reltuples, 0)::bigint AS rows
FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY 1;

-- name: list_indexes
-- How often each index was used.
SELECT s.indexrelname::text AS index, s.relname::text AS table, coalesce(s.idx_scan, 0)::bigint AS scans,
       c.relpages::bigint * current_setting('block_size')::bigint AS bytes
FROM pg_stat_user_indexes s JOIN pg_class c ON c.oid = s.indexrelid
WHERE s.schemaname = 'public' ORDER BY 1;

-- name: find_invalid_indexes
-- Indexes that a failed CREATE INDEX CONCURRENTLY left behind, except those still being built: index_relid of
-- the progress is hidden from other roles, so the builder is told by its lock on the table.
SELECT c.relname::text AS index
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relnamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_create_index p JOIN pg_locks l USING (pid)
                  WHERE l.locktype = 'relation' AND l.relation = i.indrelid AND l.granted
                    AND l.mode = 'ShareUpdateExclusiveLock'
                    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()));

-- name: find_stuck_devices
-- Devices that fetched messages after one had been waiting for five minutes, which is still waiting. The messages are
-- read once and grouped: joined to themselves they would cost the square of their number where statistics are old.
SELECT u.device_id::text AS device, count(*) AS stuck
FROM (SELECT recipient_id, max(synced_at) AS fetched,
             array_agg(created_at) FILTER (WHERE status = 'pending_sync'
                 AND created_at < (now() AT TIME ZONE 'UTC') - interval '5 minutes') AS waiting
      FROM public.messages GROUP BY recipient_id) AS m
JOIN public.users u ON u.id = m.recipient_id
CROSS JOIN LATERAL unnest(m.waiting) AS w (created_at)
WHERE u.device_id IS NOT NULL AND w.created_at + interval '5 minutes' < m.fetched
GROUP BY 1 ORDER BY 1;

-- name: find_lockers
-- The sessions that have a table of the tenant, or a catalog, for themselves alone, or wait for that before all others.
SELECT coalesce(l.pid, 0), coalesce(a.usename, 'a prepared transaction')::text, a.application_name,
       CASE WHEN bool_or(l.granted) THEN a.state ELSE 'waiting' END
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND (l.relation < 16384 OR l.relation IN (to_regclass('public.users'), to_regclass('public.messages'),
                                            to_regclass('public.sync_metadata')))
GROUP BY l.pid, a.usename, a.application_name, a.state ORDER BY bool_or(l.granted) DESC, l.pid;
