-- needs: nothing

-- name: list_roles
-- Those of some roles that exist, with the comment on each and whether it may log in.
SELECT rolname::text, shobj_description(oid, 'pg_authid'), rolcanlogin FROM pg_roles WHERE rolname = ANY (%(roles)s);

-- name: may_create
-- Whether the login may create databases and roles.
SELECT rolsuper OR (rolcreatedb AND rolcreaterole) FROM pg_roles WHERE rolname = session_user;

-- name: does_inherit
-- Whether the login has the rights of a role from the start of its sessions.
SELECT pg_has_role(session_user, %(role)s, 'USAGE');

-- name: read_limit
-- How many connections a role may have, -1 where that is not limited.
SELECT rolconnlimit FROM pg_roles WHERE rolname = %(role)s;
