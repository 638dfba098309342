-- needs: 0003

-- name: list_tokens
-- Tokens of a tenant, the newest first, without their secrets: of ids that lie between two, of a label, of a status, or
-- all.
SELECT t.id, t.tenant_id::text AS tenant, t.label,
       CASE WHEN t.used_at IS NOT NULL THEN 'used'
            WHEN t.revoked_at IS NOT NULL THEN 'revoked'
            WHEN t.expires_at <= (now() AT TIME ZONE 'UTC') THEN 'expired'
            ELSE 'active' END AS status,
       c.username::text AS created_by, t.created_by AS created_by_id,
       t.created_at AT TIME ZONE 'UTC' AS created_at, t.expires_at AT TIME ZONE 'UTC' AS expires_at,
       t.used_at AT TIME ZONE 'UTC' AS used_at, t.revoked_at AT TIME ZONE 'UTC' AS revoked_at,
       t.device_id::text, u.username::text AS username
FROM public.enrollment_tokens t
JOIN public.users c ON c.id = t.created_by
LEFT JOIN public.users u ON u.enrollment_token_id = t.id
WHERE (%(first)s::uuid IS NULL OR t.id BETWEEN %(first)s AND %(last)s)
  AND (%(label)s::text IS NULL OR t.label = %(label)s)
  AND (%(status)s::text IS NULL OR %(status)s = CASE WHEN t.used_at IS NOT NULL THEN 'used'
                                                     WHEN t.revoked_at IS NOT NULL THEN 'revoked'
                                                     WHEN t.expires_at <= (now() AT TIME ZONE 'UTC') THEN 'expired'
                                                     ELSE 'active' END)
  AND (%(token)s::uuid IS NULL OR t.token BETWEEN %(token)s AND coalesce(%(token_last)s, %(token)s))
ORDER BY t.created_at DESC, t.id LIMIT %(limit)s OFFSET %(offset)s;

-- name: list_labels
-- Labels for a suggestion, at most 1,000.
SELECT DISTINCT label FROM public.enrollment_tokens WHERE label IS NOT NULL ORDER BY label LIMIT 1000;

-- name: add_token
-- Makes a token that lives for %(seconds)s seconds from now, on the server's clock.
INSERT INTO public.enrollment_tokens (created_by, tenant_id, label, created_at, updated_at, expires_at)
VALUES (%(created_by)s, current_database(), %(label)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC',
        (now() AT TIME ZONE 'UTC') + make_interval(secs => %(seconds)s))
RETURNING id, token, tenant_id::text AS tenant, label, 'active' AS status, created_by AS created_by_id,
          created_at AT TIME ZONE 'UTC' AS created_at, expires_at AT TIME ZONE 'UTC' AS expires_at;

-- name: revoke_token
-- Ends an unused token at once; the sync engine knows only expires_at.
UPDATE public.enrollment_tokens
SET revoked_at = now() AT TIME ZONE 'UTC', expires_at = least(expires_at, now() AT TIME ZONE 'UTC')
WHERE id = %(id)s AND used_at IS NULL AND revoked_at IS NULL;

-- name: purge_tokens
-- Deletes one batch of unused tokens that expired or were revoked at least %(seconds)s seconds ago.
-- No row is locked first: that would take a right to UPDATE. A row that another session changed meanwhile is judged
-- again by the outer conditions, so a token that was used in this moment stays.
DELETE FROM public.enrollment_tokens
WHERE used_at IS NULL
  AND least(expires_at, revoked_at) <= (now() AT TIME ZONE 'UTC') - make_interval(secs => %(seconds)s)
  AND id IN (
    SELECT id FROM public.enrollment_tokens
    WHERE used_at IS NULL
      AND least(expires_at, revoked_at) <= (now() AT TIME ZONE 'UTC') - make_interval(secs => %(seconds)s)
    LIMIT %(batch)s);

-- name: count_purgeable
-- How many tokens a purge would delete.
SELECT count(*) FROM public.enrollment_tokens
WHERE used_at IS NULL
  AND least(expires_at, revoked_at) <= (now() AT TIME ZONE 'UTC') - make_interval(secs => %(seconds)s);

-- name: release_device
-- Notes at the tokens that a device used that it was let go on purpose: a device without a user was otherwise displaced by
-- another phone. A used token stays used.
UPDATE public.enrollment_tokens SET revoked_at = now() AT TIME ZONE 'UTC'
WHERE device_id = %(device)s AND used_at IS NOT NULL AND revoked_at IS NULL;

-- name: count_offered
-- How many of some users have a phone.
SELECT count(*) FROM public.users WHERE username = ANY (%(names)s) AND device_id IS NOT NULL;
