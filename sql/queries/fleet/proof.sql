-- needs: nothing

-- name: look_at_scratch
-- What a scratch database was made as.
SELECT datallowconn AS open, datconnlimit AS connection_limit, shobj_description(oid, 'pg_database') AS comment
FROM pg_database WHERE datname = %(name)s;

-- name: list_scratch
-- What proofs that were killed left behind.
SELECT datname::text, true FROM pg_database
WHERE starts_with(datname, %(prefix)s) AND datdba = (SELECT oid FROM pg_roles WHERE rolname = 'posduif_admin')
UNION ALL
SELECT rolname::text, false FROM pg_roles WHERE starts_with(rolname, %(prefix)s);

-- name: try_lock
-- Whether a lock of ours is free; it is given back when the session ends.
SELECT pg_try_advisory_lock(%(class)s, hashtext(%(subject)s));
