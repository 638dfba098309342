-- Who may do what inside a tenant's database, and the only place that says so. It is
-- idempotent and runs in the same transaction as every migration, so it must also hold
-- while some of the tables do not exist, and cost little.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO posduif_engine;

-- PostgreSQL lets everyone execute a new function; those made from now on only their owner.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

DO $$
DECLARE
    name text;
BEGIN
    -- The sync engine never deletes.
    FOREACH name IN ARRAY ARRAY['users', 'messages', 'sync_metadata', 'enrollment_tokens'] LOOP
        IF to_regclass('public.' || name) IS NOT NULL THEN
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON public.%I TO posduif_engine', name);
            EXECUTE format('REVOKE ALL ON public.%I FROM PUBLIC', name);
        END IF;
    END LOOP;
    -- The first migration made these before the default above was set.
    FOREACH name IN ARRAY ARRAY['update_updated_at_column()', 'update_synced_at()', 'update_read_at()'] LOOP
        IF has_function_privilege('public', to_regprocedure('public.' || name), 'EXECUTE') THEN
            EXECUTE format('REVOKE ALL ON FUNCTION public.%s FROM PUBLIC', name);
        END IF;
    END LOOP;
END
$$;
