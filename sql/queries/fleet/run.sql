-- needs: nothing

-- name: find_blockers
-- Who holds what a session waits for; state and age are NULL where this role may not see them.
SELECT a.pid, a.usename::text, a.application_name, a.state,
       date_trunc('second', clock_timestamp() - coalesce(a.xact_start, a.backend_start))::text
FROM unnest(pg_blocking_pids(%(pid)s)) AS b (pid) JOIN pg_stat_activity a ON a.pid = b.pid
ORDER BY a.pid;
