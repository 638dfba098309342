-- name: create_table
-- The version table, in a shape that dbmate can insert into and read; a table that dbmate made gains our columns.
CREATE TABLE IF NOT EXISTS public.schema_migrations (version text PRIMARY KEY);
ALTER TABLE public.schema_migrations
    ADD COLUMN IF NOT EXISTS checksum text,
    ADD COLUMN IF NOT EXISTS applied_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS duration_ms integer,
    ADD COLUMN IF NOT EXISTS applied_by text DEFAULT session_user;

-- name: has_table
-- Whether the version table exists with all of our columns.
SELECT count(*) = 5 FROM pg_attribute
WHERE attrelid = to_regclass('public.schema_migrations') AND NOT attisdropped
  AND attname IN ('version', 'checksum', 'applied_at', 'duration_ms', 'applied_by');

-- name: list_applied
-- The applied migrations, in the order of their versions.
SELECT version::text AS version, checksum, applied_at, duration_ms FROM public.schema_migrations ORDER BY version;

-- name: add_applied
-- Notes a migration as applied; part of the migration's transaction.
INSERT INTO public.schema_migrations (version, checksum, duration_ms, applied_by)
VALUES (%(version)s, %(checksum)s, %(duration_ms)s, session_user);
