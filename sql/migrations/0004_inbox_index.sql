-- A user's newest messages, from an index of their own. Without it the planner walks all messages from the
-- newest and filters, which takes seconds for a user who has few of them.

-- migrate:up transaction:false
-- Alone in its file and CONCURRENTLY: at 5 million rows a plain CREATE INDEX keeps the engine from writing for as
-- long as it takes, and dbmate sends a file's statements together, which PostgreSQL takes for a transaction.
CREATE INDEX CONCURRENTLY idx_messages_inbox ON messages (recipient_id, created_at DESC);

-- migrate:down
-- posduif: allow require-concurrent-index-deletion
DROP INDEX idx_messages_inbox;
