-- needs: 0001

-- name: measure_tenant
-- The connections to one tenant, other than this one, its size and its users.
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()) AS connections,
       pg_database_size(current_database()) AS size_bytes;

-- name: count_users
-- The users of one tenant.
SELECT count(*) AS users FROM public.users;

-- name: condense_rights
-- A hash of all that grants.sql looks at in this database. Where it is the same on the same server, grants.sql finds the
-- same; the roles and their memberships are the server's.
SELECT md5(string_agg(t, E'\n' ORDER BY t)) AS rights FROM (
    SELECT concat_ws(' ', 'r', n.nspname, c.relname, c.relkind, c.relowner, c.relacl,
                     (SELECT string_agg(concat_ws(' ', attname, attacl), ',' ORDER BY attnum) FROM pg_attribute
                      WHERE attrelid = c.oid AND attnum > 0 AND n.nspname = 'public' AND c.relkind IN ('r', 'p')))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S', 'v', 'm') AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_')
    UNION ALL
    SELECT concat_ws(' ', 'n', nspname, nspowner, nspacl) FROM pg_namespace WHERE NOT starts_with(nspname, 'pg_')
    UNION ALL
    SELECT concat_ws(' ', 'f', proname, proacl) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT concat_ws(' ', 'a', defaclrole, defaclnamespace, defaclobjtype, defaclacl) FROM pg_default_acl
    UNION ALL
    SELECT concat_ws(' ', 'd', datdba, replace(datacl::text, datname || '_engine', '')) FROM pg_database
    WHERE datname = current_database()
) AS of (t);

-- name: count_errors
-- The devices whose last synchronisation failed.
SELECT count(*) AS sync_errors FROM public.sync_metadata WHERE sync_status = 'error';

-- name: list_tables
-- Tables with indexes and TOAST, by PostgreSQL's own page counts: asking for exact sizes would wait for locks. With the
-- dead rows, from how many on autovacuum works on the table, and whether it does; none for one that is being vacuumed,
-- which its lock tells also to who may not see the progress.
WITH busy AS MATERIALIZED (
    SELECT DISTINCT relation FROM pg_locks WHERE locktype = 'relation' AND granted AND mode = 'ShareUpdateExclusiveLock'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT c.relname::text AS table,
       (c.relpages + coalesce((SELECT sum(i.relpages) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
                               WHERE x.indrelid = c.oid), 0)
        + coalesce((SELECT t.relpages FROM pg_class t WHERE t.oid = c.reltoastrelid), 0))::bigint
           * current_setting('block_size')::bigint AS bytes,
       greatest(c.reltuples, 0)::bigint AS rows,
       CASE WHEN c.oid NOT IN (SELECT relation FROM busy) THEN pg_stat_get_dead_tuples(c.oid) END AS dead,
       (coalesce(o.threshold, current_setting('autovacuum_vacuum_threshold')::float8)
        + coalesce(o.scale, current_setting('autovacuum_vacuum_scale_factor')::float8) * greatest(c.reltuples, 0)) AS due,
       coalesce(o.enabled, true) AND current_setting('autovacuum')::bool AND current_setting('track_counts')::bool AS automatic
FROM pg_class c
CROSS JOIN LATERAL (
    SELECT max(option_value::float8) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold') AS threshold,
           max(option_value::float8) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor') AS scale,
           bool_and(option_value::bool) FILTER (WHERE option_name = 'autovacuum_enabled') AS enabled
    FROM pg_options_to_table(c.reloptions)
) AS o
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY 1;

-- name: list_indexes
-- Indexes: how often each was used, whether it is valid, except those still being built or dropped (index_relid of the
-- progress is hidden from other roles, so the builder is told by its lock on the table), and which other index serves its
-- queries: one of the same kind that begins with the same columns.
WITH known AS MATERIALIZED (
    SELECT x.oid, x.relname::text AS index, t.relname::text AS table, i.indrelid, x.relpages, x.relam, i.indisunique,
           i.indisvalid, i.indexprs IS NULL AS plain, i.indpred::text AS condition, i.indkey::text AS keys,
           i.indclass::text AS classes, i.indoption::text AS options, i.indcollation::text AS collations
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r'
)
SELECT i.index, i.table, coalesce(pg_stat_get_numscans(i.oid), 0)::bigint AS scans,
       i.relpages::bigint * current_setting('block_size')::bigint AS bytes, i.indisunique AS is_unique,
       i.indisvalid OR EXISTS (
           SELECT FROM pg_locks l LEFT JOIN pg_stat_progress_create_index p USING (pid)
           WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'ShareUpdateExclusiveLock'
             AND (l.relation = i.indrelid AND p.pid IS NOT NULL OR l.relation = i.oid)
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS valid,
       i.indisunique OR EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.oid AND k.conrelid = i.indrelid) AS needed,
       (SELECT min(j.index) FROM known j
        WHERE j.indrelid = i.indrelid AND j.oid <> i.oid AND NOT i.indisunique AND i.plain AND j.plain AND j.indisvalid
          AND j.relam = i.relam AND i.condition IS NOT DISTINCT FROM j.condition
          AND starts_with(j.keys || ' ', i.keys || ' ') AND starts_with(j.classes || ' ', i.classes || ' ')
          AND starts_with(j.options || ' ', i.options || ' ') AND starts_with(j.collations || ' ', i.collations || ' ')
          -- Of two that are the same, the one that was made first stays.
          AND (j.keys <> i.keys OR j.indisunique OR j.oid < i.oid)) AS covered
FROM known i ORDER BY 1;

-- name: measure_statistics
-- For how many days the statistics of this database have been collected, as far as that is known.
SELECT extract(epoch FROM clock_timestamp() - stats_reset)::float8 / 86400 AS days
FROM pg_stat_database WHERE datname = current_database();

-- name: list_disabled_triggers
-- Triggers that do not fire for an engine's session, and the constraints whose checks are switched off.
SELECT t.relname::text AS table, coalesce(k.conname, g.tgname)::text AS trigger, g.tgisinternal AS internal
FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid LEFT JOIN pg_constraint k ON k.oid = g.tgconstraint
WHERE t.relnamespace = 'public'::regnamespace AND g.tgenabled IN ('D', 'R') AND t.relkind = 'r'
GROUP BY 1, 2, 3 ORDER BY 1, 2;

-- name: judge_messages
-- The messages of one tenant, read once: how many there are and how many wait for phones, how far their times are ahead of
-- this server's clock (the sender's in created_at, the server's own in the others), and the phones that fetched around a
-- message or for long none. updated_at of a message that waits is when it arrived: nothing else has changed it. A phone is
-- judged since it enrolled: the one that had its user before may have fetched, too.
WITH each AS MATERIALIZED (
    SELECT recipient_id, count(*) AS messages, count(*) FILTER (WHERE status = 'pending_sync') AS waiting,
           max(synced_at) FILTER (WHERE synced_at BETWEEN '1970-01-01' AND '9999-12-31') AS fetched,
           max(greatest(synced_at, read_at)) FILTER (WHERE greatest(synced_at, read_at) BETWEEN '1970-01-01' AND '9999-12-31') AS active,
           min(updated_at) FILTER (WHERE status = 'pending_sync' AND updated_at BETWEEN '1970-01-01' AND '9999-12-31') AS oldest,
           array_agg(updated_at) FILTER (WHERE status = 'pending_sync'
                                           AND updated_at BETWEEN '1970-01-01' AND '9999-12-31') AS arrived,
           max(created_at) FILTER (WHERE isfinite(created_at)) AS sent,
           max(greatest(updated_at, synced_at)) FILTER (WHERE isfinite(greatest(updated_at, synced_at))) AS noted
    FROM public.messages GROUP BY recipient_id
), devices AS (
    SELECT u.device_id::text AS device, m.waiting, w.stuck,
           -- What waits since yesterday says nothing of a phone that fetched all until then.
           extract(epoch FROM (now() AT TIME ZONE 'UTC') - greatest(m.active, t.used_at, m.oldest))::float8 AS silent
    FROM each m JOIN public.users u ON u.id = m.recipient_id
    LEFT JOIN public.enrollment_tokens t ON t.id = u.enrollment_token_id AND isfinite(t.used_at)
    CROSS JOIN LATERAL (SELECT count(*) AS stuck FROM unnest(m.arrived) AS a (at)
                        WHERE a.at + interval '5 minutes' < m.fetched
                          AND m.fetched > coalesce(t.used_at, '-infinity')) AS w
    WHERE u.device_id IS NOT NULL AND m.waiting > 0
)
SELECT coalesce(sum(m.messages), 0)::bigint AS messages,
       coalesce((SELECT sum(waiting) FROM devices), 0)::bigint AS pending_sync,
       extract(epoch FROM max(m.sent) - (now() AT TIME ZONE 'UTC'))::float8 AS sent_ahead,
       extract(epoch FROM max(m.noted) - (now() AT TIME ZONE 'UTC'))::float8 AS noted_ahead,
       coalesce((SELECT jsonb_agg(to_jsonb(d) ORDER BY d.stuck DESC, d.device) FROM devices d
                 WHERE d.stuck > 0 OR d.silent > %(silent)s), '[]') AS devices
FROM each m;

-- name: measure_enrollments
-- How long ago the oldest unused token expired that is still there, and how far the clock of the engine is from the
-- server's: enrolled_at is the engine's clock and used_at the server's, in the same transaction. posduif writes the same
-- time into both.
SELECT (SELECT extract(epoch FROM (now() AT TIME ZONE 'UTC') - min(expires_at))::float8 FROM public.enrollment_tokens
        WHERE used_at IS NULL AND isfinite(expires_at) AND expires_at < (now() AT TIME ZONE 'UTC')) AS overdue,
       (SELECT extract(epoch FROM u.enrolled_at - t.used_at)::float8
        FROM public.users u JOIN public.enrollment_tokens t ON t.id = u.enrollment_token_id
        WHERE isfinite(u.enrolled_at) AND isfinite(t.used_at) AND u.enrolled_at <> t.used_at
        ORDER BY t.used_at DESC LIMIT 1) AS offset_seconds;
