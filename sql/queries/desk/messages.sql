-- needs: 0002

-- name: add_message
-- Sends a message.
INSERT INTO public.messages (sender_id, recipient_id, content, created_at, updated_at)
VALUES (%(sender)s, %(recipient)s, %(content)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
RETURNING id, status::text, created_at AT TIME ZONE 'UTC' AS created_at;

-- name: note_last_message
-- The sync engine shows this beside each user, and writes it itself for what it sends.
UPDATE public.users SET last_message_sent = %(content)s WHERE id = %(sender)s;

-- name: list_messages
-- Messages without their text, which not every login may read: the newest first, or with %(oldest_first)s the oldest.
SELECT m.id, current_database()::text AS tenant, s.username::text AS sender, r.username::text AS recipient,
       NULL AS content, m.status::text,
       m.created_at AT TIME ZONE 'UTC' AS created_at, m.synced_at AT TIME ZONE 'UTC' AS synced_at,
       m.read_at AT TIME ZONE 'UTC' AS read_at, m.sender_id, m.recipient_id
FROM public.messages m JOIN public.users s ON s.id = m.sender_id JOIN public.users r ON r.id = m.recipient_id
WHERE (%(sender)s::uuid IS NULL OR m.sender_id = %(sender)s)
  AND (%(recipient)s::uuid IS NULL OR m.recipient_id = %(recipient)s)
  AND (%(device)s::text IS NULL OR r.device_id = %(device)s)
  AND (%(status)s::text IS NULL OR m.status = %(status)s)
ORDER BY CASE WHEN %(oldest_first)s THEN m.created_at END, m.created_at DESC, m.id LIMIT %(limit)s OFFSET %(offset)s;

-- name: get_message
-- The messages whose ids lie between two, at most two of them, without their texts: an id may be given in part.
SELECT m.id, current_database()::text AS tenant, s.username::text AS sender, r.username::text AS recipient,
       NULL AS content, m.status::text,
       m.created_at AT TIME ZONE 'UTC' AS created_at, m.synced_at AT TIME ZONE 'UTC' AS synced_at,
       m.read_at AT TIME ZONE 'UTC' AS read_at, m.sender_id, m.recipient_id
FROM public.messages m JOIN public.users s ON s.id = m.sender_id JOIN public.users r ON r.id = m.recipient_id
WHERE m.id BETWEEN %(first)s AND %(last)s LIMIT 2;

-- name: may_read_texts
-- Whether the session may read what is in messages.
SELECT has_column_privilege('public.messages', 'content', 'SELECT');

-- name: read_texts
-- The texts of some messages.
SELECT id, content FROM public.messages WHERE id = ANY (%(ids)s);

-- name: count_unread
-- How many messages a user has not read.
SELECT count(*) FROM public.messages WHERE recipient_id = %(user)s AND status <> 'read';

-- name: mark_message
-- Moves a message forward, never back; triggers set synced_at and read_at.
UPDATE public.messages SET status = %(status)s
WHERE id = %(id)s AND (status = 'pending_sync' OR (status = 'synced' AND %(status)s = 'read'));

-- name: read_clock
-- The server's time.
SELECT date_trunc('second', clock_timestamp());

-- name: follow_message
-- How far one message is, and how many sessions of the engine's role there are.
SELECT status::text, synced_at AT TIME ZONE 'UTC', read_at AT TIME ZONE 'UTC',
       (SELECT count(*) FROM pg_stat_activity WHERE usename = %(role)s)
FROM public.messages WHERE id = %(id)s;
