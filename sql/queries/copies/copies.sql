-- needs: nothing

-- name: open_snapshot
-- Gives the transaction's snapshot to pg_dump, for which the transaction must be open until that has begun; and when and
-- where that is, with the record.
SELECT pg_export_snapshot(), clock_timestamp(),
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text,
       (SELECT c.description FROM pg_shdescription c JOIN pg_database d ON d.oid = c.objoid
        WHERE c.classoid = 1262 AND d.datname = current_database());

-- name: describe_databases
-- What a dump does not carry of databases, all of it in the shared catalogs; and which database it is: a tenant that is
-- dropped and made again is another.
SELECT d.datname::text AS tenant, current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS version_number, d.oid::bigint AS oid,
       s.system_identifier::text AS system_identifier, k.timeline_id AS timeline,
       pg_encoding_to_char(d.encoding) AS encoding, d.datlocprovider::text AS locale_provider,
       d.datcollate::text AS "collate", d.datctype::text AS ctype, d.datcollversion AS collversion,
       current_setting('data_checksums') = 'on' AS data_checksums,
       (SELECT coalesce(json_agg(setting ORDER BY setting), '[]') FROM pg_db_role_setting s, unnest(setconfig) AS setting
        WHERE s.setdatabase = d.oid AND s.setrole = 0) AS settings,
       (SELECT coalesce(json_object_agg(setrole::regrole, setconfig), '{}') FROM pg_db_role_setting s
        WHERE s.setdatabase = d.oid AND s.setrole <> 0) AS role_settings,
       (SELECT coalesce(json_agg(item::text ORDER BY item::text), '[]') FROM unnest(d.datacl) AS item) AS grants
FROM pg_database d, pg_control_system() s, pg_control_checkpoint() k
WHERE d.datname = ANY (%(names)s);

-- name: measure_database
-- How large the database is that the session is in.
SELECT pg_database_size(current_database());

-- name: list_extensions
-- The extensions of a database beside the one that every database has.
SELECT extname::text, extversion FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1;

-- name: pin_styles
-- Has values written alike on every server, whatever its settings: the text of a row depends on these. And leaves the
-- parallel workers to engines: beside pg_dump they gain nothing on two processors.
SELECT set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true),
       set_config('intervalstyle', 'iso_8601', true), set_config('extra_float_digits', '1', true),
       set_config('bytea_output', 'hex', true), set_config('lc_monetary', 'C', true), set_config('row_security', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true);

-- name: list_sums
-- A statement for each table that counts its rows and sums their hashes, whatever their order: columns by name, so that
-- the text does not depend on the order in which they were added. Dropped and generated columns are left out.
SELECT n.nspname::text, c.relname::text, coalesce(a.names, '{}'),
       format('SELECT %L::text, %L::text, count(*), coalesce(sum(hashtextextended(ROW(%s)::text, 0)), 0)::text FROM ONLY %I.%I',
              n.nspname, c.relname, array_to_string(a.quoted, ', '), n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT array_agg(a.attname::text ORDER BY a.attname) AS names,
                           array_agg(quote_ident(a.attname) ORDER BY a.attname) AS quoted
                    FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') a
WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
ORDER BY n.nspname, c.relname;

-- name: sum_large_objects
-- How many large objects there are, and the sum of their hashes.
SELECT count(*), coalesce(sum(hashtextextended(oid::text || ':' || lo_get(oid)::text, 0)), 0)::text FROM pg_largeobject_metadata;

-- name: list_sequences
-- Where each sequence is.
SELECT schemaname::text, sequencename::text, last_value FROM pg_sequences ORDER BY 1, 2;

-- name: expire_tokens
-- Ends the unused tokens of a copy: the same tokens are good in the tenant that it is a copy of.
UPDATE public.enrollment_tokens SET expires_at = now() AT TIME ZONE 'UTC'
WHERE used_at IS NULL AND expires_at > now() AT TIME ZONE 'UTC';

-- name: end_own
-- Ends the sessions of this very login in a database.
SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity
WHERE datname = %(database)s AND usename = session_user AND backend_type = 'client backend' AND pid <> pg_backend_pid();

-- name: find_others
-- Who is in a database.
SELECT pid, usename::text, application_name, state FROM pg_stat_activity
WHERE datname = %(database)s AND backend_type = 'client backend' AND pid <> ALL (%(pids)s) ORDER BY pid;

-- name: list_grantees
-- Who beside its owner has rights on a database; NULL is PUBLIC.
SELECT DISTINCT r.rolname::text
FROM pg_database d CROSS JOIN LATERAL aclexplode(d.datacl) AS held LEFT JOIN pg_roles r ON r.oid = held.grantee
WHERE d.datname = %(database)s AND held.grantee <> d.datdba ORDER BY 1;

-- name: list_slots
-- Replication slots of a database: they stay with it, and hold back WAL.
SELECT slot_name::text FROM pg_replication_slots WHERE database = %(database)s ORDER BY 1;

-- name: rename_tokens
-- Has the tokens of a copy name the tenant that they are in.
UPDATE public.enrollment_tokens SET tenant_id = %(new)s WHERE tenant_id = %(old)s;
