-- needs: nothing

-- name: describe_tenants
-- Tenants' databases and their engines' roles, one row each, from any session of their server.
WITH people AS MATERIALIZED (
    SELECT oid, rolname FROM pg_roles WHERE rolname IN ('posduif_support', 'posduif_health', 'posduif_cron', 'posduif_backup')
), administered AS MATERIALIZED ( -- all at once: PostgreSQL keeps the memberships of the last role only
    SELECT oid FROM pg_roles WHERE pg_has_role(to_regrole('posduif_admin')::oid, oid, 'USAGE')
)
SELECT d.datname::text AS tenant,
       d.datconnlimit AS database_limit,
       a.public,
       a.others,
       coalesce('TimeZone=UTC' = ANY (s.setconfig), false) AS database_utc,
       coalesce('TimeZone=UTC' = ANY (e.setconfig), false) AS role_utc,
       (SELECT array_agg(split_part(setting, '=', 1)) FROM unnest(s.setconfig) setting
        WHERE split_part(setting, '=', 1) IN ('role', 'session_authorization', 'search_path')) AS steering,
       r.oid IS NOT NULL AS has_role,
       r.rolcanlogin AS may_log_in,
       r.rolconnlimit AS role_limit,
       (SELECT array_agg(word) FROM (VALUES (r.rolsuper, 'SUPERUSER'), (r.rolcreatedb, 'CREATEDB'),
            (r.rolcreaterole, 'CREATEROLE'), (r.rolreplication, 'REPLICATION'), (r.rolbypassrls, 'BYPASSRLS')) v (has, word)
        WHERE has) AS powers,
       shobj_description(r.oid, 'pg_authid') AS intent,
       coalesce((SELECT array_agg(g.rolname::text) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                 WHERE m.member = r.oid), '{}') AS memberships,
       EXISTS (SELECT 1 FROM administered WHERE administered.oid = r.oid) AS administered,
       coalesce(r.oid = ANY (a.connecting), false) AS may_connect,
       (SELECT array_agg(g.rolname::text) FROM people g WHERE g.oid <> ALL (a.connecting)) AS shut_out,
       shobj_description(d.oid, 'pg_database') AS comment
FROM pg_database d
LEFT JOIN pg_roles r ON r.rolname = d.datname || '_engine'
LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0
LEFT JOIN pg_db_role_setting e ON e.setdatabase = d.oid AND e.setrole = r.oid
CROSS JOIN LATERAL (
    SELECT bool_or(x.grantee = 0) AS public,
           array_agg(DISTINCT x.grantee::regrole::text) FILTER (
               WHERE x.grantee NOT IN (0, d.datdba, coalesce(r.oid, 0)) AND NOT EXISTS (SELECT 1 FROM people WHERE oid = x.grantee)
           ) AS others,
           coalesce(array_agg(x.grantee) FILTER (WHERE x.privilege_type = 'CONNECT'), '{}') AS connecting
    FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x
) AS a
WHERE d.datname = ANY (%(tenants)s);

-- name: find_creators
-- Whether the engine's role may create objects in the schema public, and which other roles may.
SELECT coalesce((SELECT has_schema_privilege(r.oid, n.oid, 'CREATE') AND NOT r.rolsuper FROM pg_roles r
                 WHERE r.rolname = %(role)s), false) AS may_create,
       ARRAY(SELECT DISTINCT c.rolname::text FROM aclexplode(n.nspacl) a JOIN pg_roles c ON c.oid = a.grantee
             WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
               AND c.rolname NOT IN ('posduif_admin', 'posduif_engine', %(role)s)) AS creators
FROM pg_namespace n WHERE n.nspname = 'public';

-- name: find_readers
-- Which groups of people may read what customers write: group, table, column.
SELECT g.rolname::text, v.relation, v.attribute
FROM (VALUES ('messages', 'content'), ('users', 'last_message_sent')) AS v (relation, attribute)
JOIN pg_roles g ON g.rolname IN ('posduif_support', 'posduif_health', 'posduif_cron')
JOIN pg_attribute w ON w.attrelid = to_regclass('public.' || v.relation) AND w.attname = v.attribute
WHERE has_column_privilege(g.oid, w.attrelid, w.attnum, 'SELECT')
  AND NOT has_column_privilege('public', w.attrelid, w.attnum, 'SELECT');

-- name: find_foreign_objects
-- What is in a tenant's database and belongs to neither posduif nor an extension; at most eleven.
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

-- name: find_row_security
-- Our tables with row-level security: table, whether it binds the owner too, whether a policy lets the engine's group
-- see rows.
SELECT c.relname::text, c.relforcerowsecurity,
       EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid
                 AND (p.polroles = '{0}' OR to_regrole('posduif_engine')::oid = ANY (p.polroles)))
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relrowsecurity
  AND c.relname IN ('users', 'messages', 'sync_metadata', 'enrollment_tokens', 'schema_migrations')
ORDER BY 1;
