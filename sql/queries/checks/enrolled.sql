-- needs: 0003

-- name: list_displaced
-- Phones whose user another phone has by now, by a name that was typed again: a used token whose device no user has, and
-- that was not let go on purpose. And web users that a phone took over.
SELECT t.device_id::text AS device, false AS web FROM public.enrollment_tokens t
WHERE t.used_at IS NOT NULL AND t.device_id IS NOT NULL AND t.revoked_at IS NULL
  AND NOT EXISTS (SELECT FROM public.users u WHERE u.device_id = t.device_id)
GROUP BY 1
UNION ALL
SELECT u.device_id::text, true FROM public.users u WHERE u.user_type = 'web' AND u.device_id IS NOT NULL
ORDER BY 2, 1 LIMIT 100;
