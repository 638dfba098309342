-- needs: nothing

-- name: inspect_tenant
-- A tenant's database and its engine's role as the server has them.
SELECT d.datconnlimit AS database_limit,
       EXISTS (SELECT 1 FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE a.grantee = 0) AS public,
       (SELECT array_agg(DISTINCT a.grantee::regrole::text) FROM aclexplode(d.datacl) a
        WHERE a.grantee NOT IN (0, d.datdba, coalesce(r.oid, 0))
          AND a.grantee::regrole::text NOT IN ('posduif_support', 'posduif_health', 'posduif_cron')) AS strangers,
       coalesce((SELECT 'TimeZone=UTC' = ANY (s.setconfig) FROM pg_db_role_setting s
                 WHERE s.setdatabase = d.oid AND s.setrole = 0), false) AS database_utc,
       coalesce((SELECT 'TimeZone=UTC' = ANY (s.setconfig) FROM pg_db_role_setting s
                 WHERE s.setdatabase = d.oid AND s.setrole = r.oid), false) AS role_utc,
       (SELECT array_agg(split_part(setting, '=', 1)) FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) setting
        WHERE s.setdatabase = d.oid AND s.setrole = 0
          AND split_part(setting, '=', 1) IN ('role', 'session_authorization', 'search_path')) AS steering,
       r.oid IS NOT NULL AS has_role,
       r.rolcanlogin AS may_log_in,
       r.rolconnlimit AS role_limit,
       (SELECT array_agg(word) FROM (VALUES (r.rolsuper, 'SUPERUSER'), (r.rolcreatedb, 'CREATEDB'),
            (r.rolcreaterole, 'CREATEROLE'), (r.rolreplication, 'REPLICATION'), (r.rolbypassrls, 'BYPASSRLS')) v (has, word)
        WHERE has) AS powers,
       shobj_description(r.oid, 'pg_authid') AS intent,
       coalesce((SELECT array_agg(m.roleid::regrole::text) FROM pg_auth_members m WHERE m.member = r.oid), '{}')::text[]
           AS memberships,
       coalesce(pg_has_role('posduif_admin', r.oid, 'USAGE'), false) AS administered,
       EXISTS (SELECT 1 FROM aclexplode(d.datacl) a WHERE a.grantee = r.oid AND a.privilege_type = 'CONNECT') AS may_connect,
       coalesce(has_schema_privilege(r.oid, 'public', 'CREATE') AND NOT r.rolsuper, false) AS may_create,
       (SELECT array_agg(DISTINCT c.rolname::text)
        FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a JOIN pg_roles c ON c.oid = a.grantee
        WHERE n.nspname = 'public' AND a.privilege_type = 'CREATE' AND a.grantee NOT IN (n.nspowner, coalesce(r.oid, 0))
          AND c.rolname NOT IN ('posduif_admin', 'posduif_engine')) AS creators,
       (SELECT array_agg(g.rolname || ' ' || t.thing) FROM (VALUES ('messages', 'content'), ('users', 'last_message_sent'))
            AS v (relation, attribute) CROSS JOIN LATERAL (SELECT v.relation || '.' || v.attribute) AS t (thing)
        JOIN pg_roles g ON g.rolname IN ('posduif_support', 'posduif_health', 'posduif_cron')
        JOIN pg_attribute w ON w.attrelid = to_regclass('public.' || v.relation) AND w.attname = v.attribute
        WHERE has_column_privilege(g.oid, w.attrelid, w.attnum, 'SELECT')
          AND NOT has_column_privilege('public', w.attrelid, w.attnum, 'SELECT')) AS readers
FROM pg_database d LEFT JOIN pg_roles r ON r.rolname = d.datname || '_engine'
WHERE d.datname = current_database();

-- name: find_foreign_objects
-- What stands in a tenant's database and belongs to neither posduif nor an extension; at most eleven.
SELECT kind, name, owner::regrole::text
FROM (SELECT 'relation' AS kind, c.oid::regclass::text AS name, c.relowner AS owner, 'pg_class'::regclass AS class, c.oid
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      UNION ALL
      SELECT 'function', p.oid::regprocedure::text, p.proowner, 'pg_proc'::regclass, p.oid
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
      WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      UNION ALL
      SELECT 'schema', n.nspname, n.nspowner, 'pg_namespace'::regclass, n.oid
      FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')) o
WHERE owner <> 'posduif_admin'::regrole
  AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = o.class AND e.objid = o.oid AND e.deptype = 'e')
ORDER BY 1, 2 LIMIT 11;

-- name: list_missing_grants
-- The commands of grants.sql that would change something: those that its block noted in a setting, and the others.
SELECT command FROM string_to_table(current_setting('posduif.grants', true), E'\n') AS command WHERE command <> ''
UNION ALL
SELECT DISTINCT 'REVOKE ALL ON SCHEMA public FROM PUBLIC'
FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a WHERE n.nspname = 'public' AND a.grantee = 0
UNION ALL
SELECT 'GRANT USAGE ON SCHEMA public TO posduif_engine'
FROM pg_roles WHERE rolname = 'posduif_engine' AND NOT has_schema_privilege(oid, 'public', 'USAGE')
UNION ALL
SELECT 'ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC'
WHERE NOT EXISTS (
    SELECT FROM pg_default_acl
    WHERE pg_get_userbyid(defaclrole) = 'posduif_admin' AND defaclnamespace = 0 AND defaclobjtype = 'f'
      AND NOT EXISTS (SELECT FROM aclexplode(defaclacl) a WHERE a.grantee = 0));
