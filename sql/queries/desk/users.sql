-- needs: 0001

-- name: list_users
-- Users of a tenant by name; of one type, or all.
SELECT id, current_database()::text AS tenant, username::text, user_type::text, device_id::text, enrolled_at AT TIME ZONE 'UTC' AS enrolled_at,
       created_at AT TIME ZONE 'UTC' AS created_at
FROM public.users WHERE %(type)s::text IS NULL OR user_type = %(type)s
ORDER BY username LIMIT %(limit)s OFFSET %(offset)s;

-- name: find_user
-- A user by name or, where no name fits, by an id or a part of one that begins only its.
SELECT id, current_database()::text AS tenant, username::text, user_type::text, device_id::text, enrolled_at AT TIME ZONE 'UTC' AS enrolled_at,
       created_at AT TIME ZONE 'UTC' AS created_at
FROM public.users WHERE username = %(who)s OR id BETWEEN %(first)s AND %(last)s
ORDER BY username = %(who)s DESC LIMIT 2;

-- name: list_names
-- Names for a suggestion, at most 1,000.
SELECT username::text FROM public.users ORDER BY username LIMIT 1000;

-- name: add_user
-- Makes a user without a device.
INSERT INTO public.users (username, user_type, created_at, updated_at)
VALUES (%(username)s, %(type)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
RETURNING id, current_database()::text AS tenant, username::text, user_type::text, device_id::text, enrolled_at AT TIME ZONE 'UTC' AS enrolled_at,
          created_at AT TIME ZONE 'UTC' AS created_at;

-- name: count_messages
-- The messages that go with a user, sent and received.
SELECT count(*) FROM public.messages WHERE sender_id = %(id)s OR recipient_id = %(id)s;

-- name: count_tokens
-- The tokens that a user made: while there are any the user cannot be deleted.
SELECT count(*) FROM public.enrollment_tokens WHERE created_by = %(id)s;

-- name: delete_user
-- Deletes a user; the messages go with it.
DELETE FROM public.users WHERE id = %(id)s;
