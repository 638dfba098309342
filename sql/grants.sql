-- Who may do what inside a tenant's database, and the only place that says so. It is
-- idempotent and runs in the same transaction as every migration that can leave it something to
-- do, so it must also hold while some of the tables, columns and groups do not exist.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO posduif_engine;

-- PostgreSQL lets everyone execute a new function; those made from now on only their owner.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

DO $$
DECLARE
    command text;
    people CONSTANT text[] := '{posduif_support, posduif_health, posduif_cron, posduif_backup}';
    -- What a group may do to a whole table; PostgreSQL knows no DELETE of single columns. The purge of unused tokens is
    -- for cron, taking a lost phone from its user is for the support desk. The sync engine never deletes.
    whole CONSTANT text[] := '{posduif_cron DELETE enrollment_tokens, posduif_support DELETE sync_metadata,
        posduif_engine SELECT users, posduif_engine SELECT messages, posduif_engine SELECT sync_metadata,
        posduif_engine SELECT enrollment_tokens, posduif_engine INSERT messages, posduif_engine INSERT sync_metadata,
        posduif_engine INSERT enrollment_tokens, posduif_backup SELECT users, posduif_backup SELECT messages,
        posduif_backup SELECT sync_metadata, posduif_backup SELECT enrollment_tokens}';
BEGIN
    -- First, because what PUBLIC has would pass for everybody's own below, and groups get single columns.
    FOR command IN
        SELECT DISTINCT format('REVOKE ALL ON public.%I FROM %s', relname,
                               CASE WHEN held.grantee = 0 THEN 'PUBLIC' ELSE held.grantee::regrole::text END)
        FROM pg_class
        LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attacl IS NOT NULL
        CROSS JOIN LATERAL (SELECT grantee, privilege_type, true AS single FROM aclexplode(attacl)
                            UNION ALL SELECT grantee, privilege_type, false FROM aclexplode(relacl)) AS held
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
          AND relname IN ('users', 'messages', 'sync_metadata', 'enrollment_tokens')
          AND (held.grantee = 0
               OR NOT single AND held.grantee::regrole::text = ANY (people || 'posduif_engine'::text)
                  AND concat_ws(' ', held.grantee::regrole, held.privilege_type, relname) <> ALL (whole))
        UNION ALL
        -- With these a role could run its own code in the session of everyone who writes there, and lock them out.
        SELECT DISTINCT format('REVOKE %s ON public.%I FROM %s CASCADE', held.privilege_type, relname, held.grantee::regrole)
        FROM pg_class
        LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attacl IS NOT NULL
        CROSS JOIN LATERAL (SELECT * FROM aclexplode(attacl) UNION ALL SELECT * FROM aclexplode(relacl)) AS held
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
          AND relname IN ('users', 'messages', 'sync_metadata', 'enrollment_tokens',
                          'schema_migrations', 'posduif_migration_progress')
          AND held.privilege_type IN ('TRIGGER', 'REFERENCES', 'MAINTAIN') AND held.grantee NOT IN (0, relowner)
    LOOP
        EXECUTE command;
    END LOOP;

    FOR command IN
        WITH rights (roles, kind, tables, columns) AS (VALUES
            -- The sync engine changes what its requests change. So who steals its password cannot rewrite a message
            -- nor prolong a token.
            ('posduif_engine', 'INSERT', 'users', 'id username user_type device_id online_status enrolled_at'
                || ' enrollment_token_id created_at updated_at'),
            ('posduif_engine', 'UPDATE', 'users', 'username user_type device_id online_status last_seen enrolled_at'
                || ' enrollment_token_id updated_at last_message_sent'),
            ('posduif_engine', 'UPDATE', 'messages', 'status updated_at synced_at read_at'),
            ('posduif_engine', 'UPDATE', 'sync_metadata', 'last_sync_timestamp pending_outgoing_count sync_status'
                || ' updated_at last_synced_lsn'),
            ('posduif_engine', 'UPDATE', 'enrollment_tokens', 'used_at device_id updated_at'),

            -- People at the support desk hand out tokens, enroll phones and send a test message. They never read
            -- what customers write: messages.content and users.last_message_sent are in no SELECT.
            ('posduif_support', 'SELECT', 'users', 'id username user_type device_id online_status last_seen'
                || ' enrolled_at enrollment_token_id created_at updated_at'),
            ('posduif_support', 'SELECT', 'messages', 'id sender_id recipient_id status created_at updated_at'
                || ' synced_at read_at'),
            ('posduif_support', 'SELECT', 'sync_metadata', 'id device_id last_sync_timestamp pending_outgoing_count'
                || ' sync_status created_at updated_at last_synced_lsn'),
            ('posduif_support', 'SELECT', 'enrollment_tokens', 'id token created_by tenant_id expires_at used_at'
                || ' device_id created_at updated_at revoked_at label replaces'),
            ('posduif_support', 'INSERT', 'users', 'username user_type device_id enrolled_at enrollment_token_id'
                || ' created_at updated_at'),
            ('posduif_support', 'INSERT', 'messages', 'sender_id recipient_id content created_at updated_at'),
            ('posduif_support', 'INSERT', 'sync_metadata', 'device_id created_at updated_at'),
            ('posduif_support', 'INSERT', 'enrollment_tokens', 'created_by tenant_id expires_at created_at updated_at'
                || ' label replaces'),
            ('posduif_support', 'UPDATE', 'users', 'last_message_sent device_id enrolled_at enrollment_token_id'),
            ('posduif_support', 'UPDATE', 'enrollment_tokens', 'expires_at used_at device_id revoked_at'),

            -- Monitoring and nightly jobs count, and read no text, no secret and no name.
            ('posduif_health posduif_cron', 'SELECT', 'users', 'id user_type device_id enrolled_at enrollment_token_id'
                || ' created_at'),
            ('posduif_health posduif_cron', 'SELECT', 'messages', 'id recipient_id status created_at updated_at'
                || ' synced_at read_at'),
            ('posduif_health posduif_cron', 'SELECT', 'sync_metadata', 'id device_id last_sync_timestamp pending_outgoing_count'
                || ' sync_status created_at updated_at last_synced_lsn'),
            ('posduif_health posduif_cron', 'SELECT', 'enrollment_tokens', 'id expires_at used_at device_id created_at'
                || ' revoked_at')
        ),
        wanted AS (
            SELECT role, kind, columns, c.oid AS class, c.relname
            FROM (SELECT * FROM rights
                  UNION ALL SELECT split_part(w, ' ', 1), split_part(w, ' ', 2), split_part(w, ' ', 3), '*'
                  FROM unnest(whole) AS w) AS r
            CROSS JOIN LATERAL string_to_table(roles, ' ') AS role
            CROSS JOIN LATERAL string_to_array(tables, ' ') AS names
            JOIN pg_class c ON c.relname = ANY (names) AND c.relnamespace = 'public'::regnamespace
            WHERE to_regrole(role) IS NOT NULL
        )
        SELECT format('GRANT %s ON public.%I TO %I', kind, relname, role)
        FROM wanted WHERE columns = '*' AND NOT has_table_privilege(role, class, kind)
        UNION ALL
        SELECT format('GRANT %s (%s) ON public.%I TO %I', kind, string_agg(quote_ident(attname), ', '), relname, role)
        FROM wanted
        JOIN pg_attribute ON attrelid = class AND attname = ANY (string_to_array(columns, ' '))
        -- In this order: a DELETE of columns is not even a question.
        WHERE CASE WHEN columns = '*' THEN false ELSE NOT has_column_privilege(role, class, attnum, kind) END
        GROUP BY role, kind, relname
        UNION ALL
        SELECT format('GRANT USAGE ON SCHEMA public TO %I', role)
        FROM unnest(people) AS role
        WHERE to_regrole(role) IS NOT NULL AND NOT has_schema_privilege(to_regrole(role), 'public', 'USAGE')
        UNION ALL
        -- A login that makes backups reads every table, also those that an administrator makes by hand later.
        SELECT format('ALTER DEFAULT PRIVILEGES GRANT SELECT ON %s TO posduif_backup', kind)
        FROM (VALUES ('TABLES', 'r'), ('SEQUENCES', 'S')) AS v (kind, type)
        WHERE to_regrole('posduif_backup') IS NOT NULL
          AND NOT EXISTS (SELECT FROM pg_default_acl, aclexplode(defaclacl) AS held
                          WHERE defaclrole = current_user::regrole AND defaclnamespace = 0 AND defaclobjtype::text = type
                            AND held.grantee = to_regrole('posduif_backup') AND held.privilege_type = 'SELECT')
        UNION ALL
        SELECT format('GRANT USAGE ON SCHEMA %I TO posduif_backup', nspname)
        FROM pg_namespace
        WHERE to_regrole('posduif_backup') IS NOT NULL AND nspname NOT IN ('public', 'information_schema')
          AND NOT starts_with(nspname, 'pg_') AND pg_has_role(nspowner, 'USAGE')
          AND NOT has_schema_privilege(to_regrole('posduif_backup'), oid, 'USAGE')
        UNION ALL
        SELECT format('GRANT SELECT ON %s TO posduif_backup', c.oid::regclass)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE to_regrole('posduif_backup') IS NOT NULL AND c.relkind IN ('r', 'p', 'S', 'v', 'm')
          AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_') AND pg_has_role(c.relowner, 'USAGE')
          AND NOT (n.nspname = 'public' AND c.relname IN ('users', 'messages', 'sync_metadata', 'enrollment_tokens'))
          AND CASE c.relkind WHEN 'S' THEN NOT has_sequence_privilege(to_regrole('posduif_backup'), c.oid, 'SELECT')
                             ELSE NOT has_table_privilege(to_regrole('posduif_backup'), c.oid, 'SELECT') END
        UNION ALL
        -- It has them as the database's owner. By its own name they are found without a look at its memberships, of
        -- which it has two per tenant: with 1,000 tenants that took 2 ms of every session.
        SELECT 'GRANT ALL ON SCHEMA public TO posduif_admin' FROM pg_namespace
        WHERE nspname = 'public'
          AND (SELECT count(*) FROM aclexplode(nspacl) WHERE grantee = to_regrole('posduif_admin')) < 2
        UNION ALL
        -- Not on a template: what people wrote into it would be in every tenant.
        SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role)
        FROM unnest(people) AS role
        WHERE to_regrole(role) IS NOT NULL AND NOT starts_with(current_database(), 'posduif')
          AND NOT has_database_privilege(to_regrole(role), current_database(), 'CONNECT')
        UNION ALL
        -- The first migration made these before the default above was set.
        SELECT format('REVOKE ALL ON FUNCTION public.%s FROM PUBLIC', name)
        FROM unnest(ARRAY['update_updated_at_column()', 'update_synced_at()', 'update_read_at()']) AS name
        WHERE has_function_privilege('public', to_regprocedure('public.' || name), 'EXECUTE')
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;
