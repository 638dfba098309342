-- Who may do what inside a tenant's database, and the only place that says so. It is
-- idempotent and runs in the same transaction as every migration, so it must also hold
-- while some of the tables do not exist.

REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

GRANT USAGE ON SCHEMA public TO posduif_engine;

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
