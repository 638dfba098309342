-- needs: 0001

-- name: list_devices
-- Devices of a tenant by user: one by its id or its user's name, or all. The engine never writes last_seen, so the last activity
-- is when messages were last fetched or read.
SELECT u.device_id::text, current_database()::text AS tenant, u.id AS user_id, u.username::text, u.enrolled_at AT TIME ZONE 'UTC' AS enrolled_at,
       m.last_activity AT TIME ZONE 'UTC' AS last_activity, s.sync_status::text, coalesce(m.pending, 0) AS pending
FROM public.users u
LEFT JOIN public.sync_metadata s ON s.device_id = u.device_id
LEFT JOIN LATERAL (SELECT max(greatest(synced_at, read_at)) AS last_activity,
                          count(*) FILTER (WHERE status = 'pending_sync') AS pending
                   FROM public.messages WHERE recipient_id = u.id) m ON true
WHERE u.device_id IS NOT NULL AND (%(device)s::text IS NULL OR %(device)s IN (u.device_id, u.username))
ORDER BY u.device_id = %(device)s DESC, u.username LIMIT %(limit)s OFFSET %(offset)s;

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
