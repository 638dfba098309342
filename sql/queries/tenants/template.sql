-- needs: nothing

-- name: list_templates
-- The databases that tenants are copied from, of this and of other versions of posduif, with their comments.
SELECT datname::text AS name, shobj_description(oid, 'pg_database') AS record
FROM pg_database
WHERE datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin') AND starts_with(datname, %(prefix)s)
ORDER BY 1;
