-- needs: nothing

-- name: export_snapshot
-- Gives the transaction's snapshot to pg_dump; the transaction must be open until that has begun.
SELECT pg_export_snapshot();

-- name: describe_database
-- What a dump does not carry of a database, and which database it is: a tenant that is dropped and made again is another.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
       d.oid::bigint AS oid, shobj_description(d.oid, 'pg_database') AS comment,
       clock_timestamp() AS at
FROM pg_database d WHERE d.datname = current_database();

-- name: list_sums
-- A statement for each table that counts its rows and sums their hashes, whatever their order: columns by name, so that
-- the text does not depend on the order in which they were added. Dropped and generated columns are left out.
SELECT format('SELECT %L::text, count(*), coalesce(sum(hashtextextended(ROW(%s)::text, 0)), 0)::text FROM ONLY %I.%I',
              format('%I.%I', n.nspname, c.relname),
              (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) FROM pg_attribute a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
              n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
ORDER BY n.nspname, c.relname;

-- name: list_sequences
-- Where each sequence is.
SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences ORDER BY 1;

-- name: expire_tokens
-- Ends the unused tokens of a copy: the same tokens are good in the tenant that it is a copy of.
UPDATE public.enrollment_tokens SET expires_at = now() AT TIME ZONE 'UTC'
WHERE used_at IS NULL AND expires_at > now() AT TIME ZONE 'UTC';
