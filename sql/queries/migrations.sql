-- name: create_table
-- The version table, in a shape that dbmate can insert into and read; a table that dbmate made gains our columns.
CREATE TABLE IF NOT EXISTS public.schema_migrations (version text PRIMARY KEY);
ALTER TABLE public.schema_migrations
    ADD COLUMN IF NOT EXISTS checksum text,
    ADD COLUMN IF NOT EXISTS applied_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS duration_ms integer,
    ADD COLUMN IF NOT EXISTS applied_by text DEFAULT session_user;

-- name: list_applied
-- The applied migrations, in the order of their versions.
SELECT version::text AS version, checksum, applied_at, duration_ms, applied_by FROM public.schema_migrations ORDER BY version;

-- name: add_applied
-- Notes a migration as applied; part of the migration's transaction, whose time is its duration if none is given.
INSERT INTO public.schema_migrations (version, checksum, duration_ms, applied_by)
VALUES (%(version)s, %(checksum)s,
        coalesce(%(duration_ms)s, round(extract(epoch FROM clock_timestamp() - now()) * 1000)::int), session_user);

-- name: delete_applied
-- Forgets a migration that was taken back; part of its transaction.
DELETE FROM public.schema_migrations WHERE version = %(version)s;

-- name: create_progress
-- How far a file without a transaction of its own is: kept apart from the version table, where dbmate would
-- take half a file for an applied one.
CREATE TABLE IF NOT EXISTS public.posduif_migration_progress (
    version text NOT NULL,
    statement integer NOT NULL,
    checksum text NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    PRIMARY KEY (version, statement)
);

-- name: list_done
-- The statements of a file that were run to their end, with the checksum of each.
SELECT statement, checksum FROM public.posduif_migration_progress
WHERE version = %(version)s AND done_at IS NOT NULL;

-- name: is_begun
-- Whether an earlier try noted that it would run this statement outside a transaction.
SELECT EXISTS (SELECT 1 FROM public.posduif_migration_progress
               WHERE version = %(version)s AND statement = %(statement)s AND checksum = %(checksum)s);

-- name: mark_begun
-- Notes the intent to run a statement outside a transaction.
INSERT INTO public.posduif_migration_progress (version, statement, checksum)
VALUES (%(version)s, %(statement)s, %(checksum)s)
ON CONFLICT (version, statement) DO UPDATE SET checksum = excluded.checksum;

-- name: mark_done
-- Notes that a statement was run; in its own transaction where PostgreSQL allows it one.
INSERT INTO public.posduif_migration_progress (version, statement, checksum, done_at)
VALUES (%(version)s, %(statement)s, %(checksum)s, now())
ON CONFLICT (version, statement) DO UPDATE SET checksum = excluded.checksum, done_at = excluded.done_at;

-- name: delete_progress
-- Forgets the progress of a file that is through; part of the transaction that records it.
DELETE FROM public.posduif_migration_progress WHERE version = %(version)s;

-- name: find_index_state
-- valid, invalid or building; no row for no such index. A partitioned table's own index is never a wreck.
-- Who builds is told by locks, because index_relid of the progress is hidden from other roles, and late.
SELECT CASE WHEN i.indisvalid OR c.relkind = 'I' THEN 'valid'
            WHEN EXISTS (SELECT 1 FROM pg_stat_progress_create_index p JOIN pg_locks l USING (pid)
                         WHERE l.locktype = 'relation' AND l.relation = i.indrelid AND l.granted
                           AND l.mode = 'ShareUpdateExclusiveLock' AND p.pid <> pg_backend_pid()
                           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
                THEN 'building'
            ELSE 'invalid' END
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(index)s;

-- name: find_reindex_wrecks
-- What an interrupted REINDEX CONCURRENTLY leaves behind, or one that still runs is working on.
SELECT n.nspname::text, c.relname::text
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relname ~ '_cc(new|old)[0-9]*$' AND n.nspname !~ '^pg_';

-- name: find_open_transactions
-- Sessions of this database in a transaction: what CREATE INDEX CONCURRENTLY waits for.
SELECT DISTINCT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'virtualxid' AND l.granted AND a.pid <> pg_backend_pid() AND a.datname = current_database()
ORDER BY 1;

-- name: grants_hold
-- Whether grants.sql would find nothing to do, as after most migrations: to run it takes longer than they do. What
-- the sync engine needs is looked at; for people, that no table or column came anew. What somebody took or gave by
-- hand is found by `tenant verify`, which runs all of it.
WITH ours AS (
    SELECT ARRAY[to_regclass('public.users'), to_regclass('public.messages'), to_regclass('public.sync_metadata'),
                 to_regclass('public.enrollment_tokens')]::oid[] AS oids
)
SELECT has_schema_privilege('posduif_engine', 'public', 'USAGE')
   AND (SELECT bool_and(has_table_privilege('posduif_engine', oid, 'SELECT')
                        AND has_table_privilege('posduif_engine', oid, 'INSERT')
                        AND has_table_privilege('posduif_engine', oid, 'UPDATE'))
        FROM unnest(oids) AS oid)
   AND NOT EXISTS (
       SELECT 1 FROM pg_attribute
       WHERE attrelid = ANY (oids) AND attacl IS NULL AND attnum > 0
         AND attname = ANY ('{id,username,user_type,device_id,online_status,last_seen,enrolled_at,enrollment_token_id,
             created_at,updated_at,last_message_sent,sender_id,recipient_id,content,status,synced_at,read_at,
             last_sync_timestamp,pending_outgoing_count,sync_status,last_synced_lsn,token,created_by,tenant_id,
             expires_at,used_at,revoked_at,label,replaces}')
   )
FROM ours;
