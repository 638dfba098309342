-- Who may do what inside a tenant's database, and the only place that says so. It is
-- idempotent and runs in the same transaction as every migration, so it must also hold
-- while some of the tables do not exist.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

GRANT USAGE ON SCHEMA public TO posduif_engine;

-- What a superuser or an extension made here is theirs to close; REVOKE on it would be an error.
DO $$
DECLARE
    object text;
BEGIN
    FOR object IN
        SELECT format('TABLE %s', oid::regclass) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
          AND pg_has_role(relowner, 'USAGE')
        UNION ALL
        SELECT format('ROUTINE %s', oid::regprocedure) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND pg_has_role(proowner, 'USAGE')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', object);
    END LOOP;
END
$$;

-- The sync engine never deletes.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['users', 'messages', 'sync_metadata', 'enrollment_tokens'] LOOP
        IF to_regclass('public.' || name) IS NOT NULL THEN
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON public.%I TO posduif_engine', name);
        END IF;
    END LOOP;
END
$$;
