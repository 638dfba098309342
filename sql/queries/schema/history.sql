-- needs: nothing

-- name: create_table
-- The version table, in a shape that dbmate can insert into and read.
CREATE TABLE IF NOT EXISTS public.schema_migrations (version text PRIMARY KEY);

-- name: complete_table
-- Our columns of the version table, which a table that dbmate made lacks.
ALTER TABLE public.schema_migrations
    ADD COLUMN IF NOT EXISTS checksum text,
    ADD COLUMN IF NOT EXISTS applied_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS duration_ms integer,
    ADD COLUMN IF NOT EXISTS applied_by text DEFAULT session_user;

-- name: list_applied
-- The applied migrations, in the order of their versions.
SELECT version::text AS version, checksum, applied_at, duration_ms, applied_by FROM public.schema_migrations
WHERE version IS NOT NULL ORDER BY version;

-- name: list_checksums
-- What was applied, and from which text, for a message of several statements: the simplest query is the quickest.
SELECT version, checksum FROM public.schema_migrations WHERE version IS NOT NULL;

-- name: list_bare
-- The versions in a table that another tool made, which lacks our columns.
SELECT version::text FROM public.schema_migrations WHERE version IS NOT NULL ORDER BY 1;

-- name: has_progress
-- Whether there is a table of half-done files.
SELECT to_regclass('public.posduif_migration_progress') IS NOT NULL;

-- name: has_table
-- Whether there is a version table.
SELECT to_regclass('public.schema_migrations') IS NOT NULL;

-- name: find_holders
-- Who holds the version table so that it cannot even be read.
SELECT a.pid, a.usename::text, a.application_name, a.state
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'AccessExclusiveLock'
  AND l.relation = to_regclass('public.schema_migrations')
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 1;

-- name: add_applied
-- Notes a migration as applied; part of the migration's last transaction, %(duration_ms)s is what it took before that.
INSERT INTO public.schema_migrations (version, checksum, duration_ms, applied_by)
VALUES (%(version)s, %(checksum)s,
        %(duration_ms)s + (extract(epoch FROM clock_timestamp() - transaction_timestamp()) * 1000)::integer,
        %(applied_by)s)
RETURNING version;

-- name: delete_applied
-- Forgets a migration that was taken back; part of its transaction.
DELETE FROM public.schema_migrations WHERE version = %(version)s RETURNING version;

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

-- name: list_begun
-- The statements of a file that were begun, in their order: number, whether it was run to its end, and checksum.
SELECT statement, done_at IS NOT NULL, checksum FROM public.posduif_migration_progress
WHERE version = %(version)s ORDER BY statement;

-- name: list_half_done
-- Files without a transaction that were begun and are not through: `:down` behind the version of one being taken back.
SELECT version, count(done_at)::int FROM public.posduif_migration_progress GROUP BY version ORDER BY version;

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

-- name: count_people
-- What is lost with the bundled tables.
SELECT (SELECT count(*) FROM public.users) AS users,
       (SELECT count(*) FROM public.users WHERE device_id IS NOT NULL) AS devices,
       (SELECT count(*) FROM public.messages) AS messages,
       (SELECT count(*) FROM public.enrollment_tokens) AS tokens;
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

-- name: look_at_rights
-- Whether the sync engine has its rights on those of our tables that there are, and whether it could create objects
-- beside them: what grants.sql was to see to, which a REVOKE by a role that may not is a mere warning for.
SELECT has_schema_privilege('posduif_engine', 'public', 'USAGE')
           AND bool_and(has_any_column_privilege('posduif_engine', to_regclass(name), privilege)),
       has_schema_privilege('posduif_engine', 'public', 'CREATE')
FROM unnest('{public.users,public.messages,public.sync_metadata,public.enrollment_tokens}'::text[]) AS name,
     unnest('{SELECT,INSERT,UPDATE}'::text[]) AS privilege;

-- name: count_changes
-- How many rows of the catalogs that hold rights this session has changed lately, in this transaction for certain:
-- first those of schemas, databases, roles and defaults together, then of relations, columns, functions and who is
-- named in any. No row where the server does not count. No catalog is read: a new session's first look into each is
-- dear.
SELECT pg_stat_get_xact_tuples_inserted('pg_namespace'::regclass) + pg_stat_get_xact_tuples_updated('pg_namespace'::regclass)
           + pg_stat_get_xact_tuples_inserted('pg_default_acl'::regclass)
           + pg_stat_get_xact_tuples_updated('pg_default_acl'::regclass)
           + pg_stat_get_xact_tuples_deleted('pg_default_acl'::regclass)
           + pg_stat_get_xact_tuples_updated('pg_database'::regclass)
           + pg_stat_get_xact_tuples_inserted('pg_auth_members'::regclass)
           + pg_stat_get_xact_tuples_updated('pg_auth_members'::regclass)
           + pg_stat_get_xact_tuples_deleted('pg_auth_members'::regclass)
           + pg_stat_get_xact_tuples_inserted('pg_authid'::regclass)
           + pg_stat_get_xact_tuples_updated('pg_authid'::regclass),
       pg_stat_get_xact_tuples_inserted('pg_class'::regclass),
       pg_stat_get_xact_tuples_updated('pg_class'::regclass),
       pg_stat_get_xact_tuples_deleted('pg_class'::regclass),
       pg_stat_get_xact_tuples_inserted('pg_attribute'::regclass),
       pg_stat_get_xact_tuples_updated('pg_attribute'::regclass),
       pg_stat_get_xact_tuples_inserted('pg_proc'::regclass),
       pg_stat_get_xact_tuples_updated('pg_proc'::regclass),
       pg_stat_get_xact_tuples_inserted('pg_shdepend'::regclass),
       pg_stat_get_xact_tuples_updated('pg_shdepend'::regclass),
       pg_stat_get_xact_tuples_deleted('pg_shdepend'::regclass)
WHERE current_setting('track_counts') = 'on';
