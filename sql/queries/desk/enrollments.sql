-- needs: 0003

-- name: lock_token
-- The token under a row lock, so that it is spent once; its state is judged on the server's clock.
SELECT id, used_at AT TIME ZONE 'UTC' AS used_at, revoked_at AT TIME ZONE 'UTC' AS revoked_at,
       expires_at AT TIME ZONE 'UTC' AS expires_at, expires_at > (clock_timestamp() AT TIME ZONE 'UTC') AS alive, device_id::text
FROM public.enrollment_tokens WHERE token = %(token)s FOR UPDATE;

-- name: is_id
-- Whether what was given as a token is the id of one.
SELECT EXISTS (SELECT FROM public.enrollment_tokens WHERE id = %(id)s);

-- name: lock_device
-- Serialises enrollments of one device: users.device_id is not unique in the schema.
SELECT pg_advisory_xact_lock(%(class)s, hashtext('device ' || %(device)s));

-- name: find_device_owner
-- The user who has this device.
SELECT id, username::text FROM public.users WHERE device_id = %(device)s LIMIT 1;

-- name: give_device
-- Gives a mobile user another device, or the one that it has anew.
UPDATE public.users SET device_id = %(device)s, enrolled_at = now() AT TIME ZONE 'UTC', enrollment_token_id = %(token)s
WHERE id = %(user)s AND user_type = 'mobile'
RETURNING id, enrolled_at AT TIME ZONE 'UTC';

-- name: spend_token
-- Marks the token as used by the device.
UPDATE public.enrollment_tokens SET used_at = now() AT TIME ZONE 'UTC', device_id = %(device)s WHERE id = %(id)s;

-- name: add_mobile_user
-- Makes the mobile user of an enrollment.
INSERT INTO public.users (username, user_type, device_id, enrolled_at, enrollment_token_id, created_at, updated_at)
VALUES (%(username)s, 'mobile', %(device)s, now() AT TIME ZONE 'UTC', %(token)s,
        now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
RETURNING id, enrolled_at AT TIME ZONE 'UTC';

-- name: add_sync_metadata
-- The device's synchronisation row; the engine may have made one when the phone asked for its status.
INSERT INTO public.sync_metadata (device_id, created_at, updated_at)
VALUES (%(device)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
ON CONFLICT (device_id) DO NOTHING;
