-- needs: nothing

-- name: find_planted
-- Who may give our roles to anyone, role by role: a role with ADMIN OPTION could make any role a member, and so own the
-- code that a superuser's session runs. The row of NULLs: the first superuser makes the maker of a role a member of it;
-- without such a grant the maker has been dropped. On PostgreSQL 15 CREATEROLE may grant itself every role anyway, so
-- that there nothing can be concluded.
SELECT m.roleid::regrole::text, array_agg(DISTINCT h.rolname::text)
FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
WHERE m.admin_option AND m.roleid IN (to_regrole('posduif_admin'), to_regrole('posduif_engine'))
  AND NOT h.rolsuper AND h.rolname <> 'posduif_admin'
GROUP BY 1
UNION ALL
SELECT NULL, NULL
WHERE to_regrole('posduif_admin') IS NOT NULL
  AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.grantor
                  WHERE m.roleid = to_regrole('posduif_admin') AND g.rolsuper)
ORDER BY 1 NULLS LAST;

-- name: list_members
-- The ordinary roles that may take on a role of ours; before PostgreSQL 16 that is every member.
SELECT DISTINCT h.rolname::text FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
WHERE m.roleid = to_regrole(%(role)s) AND coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)
  AND NOT h.rolsuper AND h.rolname <> 'posduif_admin' ORDER BY 1;

-- name: find_blockers
-- Sessions that keep others from a table of this database, or have changed rows in it or in the shared catalogs and
-- not ended yet.
SELECT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, ''),
       coalesce(', on ' || string_agg(DISTINCT l.relation::regclass::text, ' and '), '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.granted AND a.pid <> pg_backend_pid()
  AND (l.locktype = 'relation' AND l.database = 0 AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
       OR a.datname = current_database()
          AND (l.locktype = 'transactionid' OR l.locktype = 'relation' AND l.relation >= 16384
               AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))
GROUP BY 1, 2, 3 ORDER BY count(l.relation) DESC, 1;

-- name: try_lock
-- Takes an advisory lock of ours, or says that another session has it.
SELECT pg_try_advisory_lock(%(class)s, hashtext(%(subject)s));

-- name: give_back_lock
-- Gives an advisory lock back.
SELECT pg_advisory_unlock(%(class)s, hashtext(%(subject)s));

-- name: list_lock_holders
-- The sessions that hold an advisory lock of ours, and for how long they have been there.
SELECT a.pid, a.application_name, a.usename,
       coalesce(', for ' || date_trunc('second', clock_timestamp() - a.backend_start)::text, '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = %(class)s
  AND l.objid::bigint = hashtext(%(subject)s)::bigint & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.granted;

-- name: end_engines
-- Ends the sessions of each engine that holds or wants an advisory lock of ours: it has no business there. The found
-- are materialized, or sessions of others might be ended before they are told apart.
WITH found AS MATERIALIZED (
    SELECT pid, usename FROM pg_stat_activity
    WHERE datname = current_database() AND usename ~ '_engine$' AND pg_has_role(usesysid, 'USAGE')
      AND usesysid IN (
          SELECT a.usesysid
          FROM pg_locks l JOIN pg_stat_activity a USING (pid)
          WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = %(class)s
            AND l.objid::bigint = hashtext(%(subject)s)::bigint & 4294967295
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
)
SELECT string_agg('pid ' || pid || ' of ' || usename, ', ') FROM found WHERE pg_terminate_backend(pid);

-- name: list_prepared
-- Prepared transactions of this database, which keep their locks without a session.
SELECT gid, owner::text FROM pg_prepared_xacts WHERE database = current_database();
