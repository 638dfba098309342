-- needs: 0001

-- name: list_devices
-- Devices of a tenant by user: one by its id or its user's name, or all. The engine never writes last_seen, so the last
-- activity is when messages were last fetched or read. After them, devices that enrolled and that no user has any more:
-- the engine gives a user whose name is typed again to the new phone, and notes that nowhere. Used tokens tell. Such a
-- device's user is the one made in the same moment as its first token was used, or the one of its token's label.
WITH used AS MATERIALIZED (
    SELECT device_id, count(*) AS times, min(used_at) AS first, max(used_at) AS last,
           (array_agg(to_jsonb(t) ->> 'label' ORDER BY used_at DESC))[1] AS label
    FROM public.enrollment_tokens t WHERE used_at IS NOT NULL AND device_id IS NOT NULL
      AND to_jsonb(t) ->> 'revoked_at' IS NULL -- let go on purpose
    GROUP BY device_id
), found AS (
    SELECT u.device_id::text, u.id AS user_id, u.username::text, u.user_type::text, 'enrolled' AS state,
           u.enrolled_at AT TIME ZONE 'UTC' AS enrolled_at, m.last_activity AT TIME ZONE 'UTC' AS last_activity,
           s.sync_status::text, coalesce(m.pending, 0) AS pending,
           CASE WHEN u.user_type = 'web' THEN 'took over a web user: its phone typed this name'
                WHEN (SELECT count(*) FROM public.users o WHERE o.device_id = u.device_id) > 1
                THEN 'another user has this device id, too'
                WHEN used.times > 1 THEN format('enrolled %%s times: two phones of one model send the same id', used.times)
           END AS note
    FROM public.users u
    LEFT JOIN public.sync_metadata s ON s.device_id = u.device_id
    LEFT JOIN used ON used.device_id = u.device_id
    LEFT JOIN LATERAL (SELECT max(greatest(synced_at, read_at)) AS last_activity,
                              count(*) FILTER (WHERE status = 'pending_sync') AS pending
                       FROM public.messages WHERE recipient_id = u.id) m ON true
    WHERE u.device_id IS NOT NULL AND (%(device)s::text IS NULL OR %(device)s IN (u.device_id, u.username))
    UNION ALL
    SELECT used.device_id::text, NULL, NULL, NULL, 'displaced', used.last AT TIME ZONE 'UTC', NULL, NULL, 0,
           CASE WHEN heir.device_id IS NOT NULL THEN format('device %%s has its user %%s now', heir.device_id, heir.username)
                WHEN heir.username IS NOT NULL THEN format('it was taken from its user %%s', heir.username)
                ELSE 'no user has it any more: another phone has its user, or the user was deleted' END
    FROM used
    LEFT JOIN LATERAL (SELECT u.username, u.device_id FROM public.users u
                       WHERE u.user_type = 'mobile'
                         AND (u.created_at BETWEEN used.first - interval '2 seconds' AND used.first + interval '2 seconds'
                              OR u.username = used.label)
                       ORDER BY u.username = used.label DESC NULLS LAST, greatest(u.created_at, used.first)
                                - least(u.created_at, used.first) LIMIT 1) heir ON true
    WHERE (%(device)s::text IS NULL OR used.device_id = %(device)s)
      AND NOT EXISTS (SELECT FROM public.users u WHERE u.device_id = used.device_id)
)
SELECT *, current_database()::text AS tenant FROM found
ORDER BY state DESC, device_id = %(device)s DESC, username, device_id LIMIT %(limit)s OFFSET %(offset)s;

-- name: lock_user
-- The user under a row lock, with its device: by its id, so that a device that it lost meanwhile is seen.
SELECT device_id::text, user_type::text FROM public.users WHERE id = %(id)s FOR UPDATE;

-- name: clear_device
-- Takes the device from a mobile user; a web user is never touched.
UPDATE public.users SET device_id = NULL, enrolled_at = NULL, enrollment_token_id = NULL
WHERE id = %(id)s AND user_type = 'mobile';

-- name: delete_sync_metadata
-- Deletes the synchronisation row of a device.
DELETE FROM public.sync_metadata WHERE device_id = %(device)s;
