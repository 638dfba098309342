-- needs: 0002

-- name: add_message
-- Sends a message.
INSERT INTO public.messages (sender_id, recipient_id, content, created_at, updated_at)
VALUES (%(sender)s, %(recipient)s, %(content)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
RETURNING id, status::text, created_at AT TIME ZONE 'UTC' AS created_at;

-- name: note_last_message
-- The sync engine shows this beside each user, and writes it itself for what it sends.
UPDATE public.users SET last_message_sent = %(content)s WHERE id = %(sender)s;

-- name: get_message
-- One message.
SELECT m.id, s.username::text AS sender, r.username::text AS recipient, m.content, m.status::text,
       m.created_at AT TIME ZONE 'UTC' AS created_at, m.synced_at AT TIME ZONE 'UTC' AS synced_at,
       m.read_at AT TIME ZONE 'UTC' AS read_at, m.sender_id, m.recipient_id
FROM public.messages m JOIN public.users s ON s.id = m.sender_id JOIN public.users r ON r.id = m.recipient_id
WHERE m.id = %(id)s;

-- name: list_inbox
-- What a user received, the newest first.
SELECT m.id, s.username::text AS sender, r.username::text AS recipient, m.content, m.status::text,
       m.created_at AT TIME ZONE 'UTC' AS created_at, m.synced_at AT TIME ZONE 'UTC' AS synced_at,
       m.read_at AT TIME ZONE 'UTC' AS read_at, m.sender_id, m.recipient_id
FROM public.messages m JOIN public.users s ON s.id = m.sender_id JOIN public.users r ON r.id = m.recipient_id
WHERE m.recipient_id = %(user)s
ORDER BY m.created_at DESC, m.id LIMIT %(limit)s OFFSET %(offset)s;

-- name: count_unread
-- How many messages a user has not read.
SELECT count(*) FROM public.messages WHERE recipient_id = %(user)s AND status <> 'read';

-- name: list_pending
-- What waits for a device, the oldest first.
SELECT m.id, s.username::text AS sender, r.username::text AS recipient, m.content, m.status::text,
       m.created_at AT TIME ZONE 'UTC' AS created_at, m.synced_at AT TIME ZONE 'UTC' AS synced_at,
       m.read_at AT TIME ZONE 'UTC' AS read_at, m.sender_id, m.recipient_id
FROM public.messages m JOIN public.users s ON s.id = m.sender_id JOIN public.users r ON r.id = m.recipient_id
WHERE r.device_id = %(device)s AND m.status = 'pending_sync'
ORDER BY m.created_at, m.id LIMIT %(limit)s OFFSET %(offset)s;

-- name: mark_message
-- Moves a message forward, never back; triggers set synced_at and read_at.
UPDATE public.messages SET status = %(status)s
WHERE id = %(id)s AND (status = 'pending_sync' OR (status = 'synced' AND %(status)s = 'read'));
