-- needs: nothing

-- name: lock_ports
-- Waits until no other session of this database chooses a port; this session then holds the lock.
SELECT pg_advisory_lock(x'706F7364'::int, hashtext('posduif ports'));

-- name: unlock_ports
-- Lets the next session choose a port.
SELECT pg_advisory_unlock(x'706F7364'::int, hashtext('posduif ports'));

-- name: list_ports
-- The ports that the engines of this server's other tenants were given, by record or, before there is one, by intent.
SELECT port::int, min(tenant)
FROM (SELECT d.datname::text AS tenant, substring(c.description FROM '"engine":\{[^{}]*"port":([0-9]{1,5})[,}]') AS port
      FROM pg_database d JOIN pg_shdescription c ON c.objoid = d.oid AND c.classoid = 'pg_database'::regclass
      WHERE d.datdba = to_regrole('posduif_admin') AND c.description LIKE 'posduif {%%'
      UNION ALL
      SELECT left(r.rolname, -7), substring(c.description FROM '"port":([0-9]{1,5})[,}]')
      FROM pg_roles r JOIN pg_shdescription c ON c.objoid = r.oid AND c.classoid = 'pg_authid'::regclass
      WHERE r.rolname LIKE '%%\_engine' AND c.description LIKE 'posduif {%%') AS given
WHERE port IS NOT NULL AND tenant <> %(tenant)s
GROUP BY port;
