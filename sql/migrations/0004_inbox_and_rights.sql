-- A user's newest messages come from an index of their own: without it the planner walks all messages from the newest
-- and filters, which takes seconds for a user who has few of them. And tenants get the rights that grants.sql gained
-- since 0003: grants.sql runs in the transaction of this file, as it does after every file that is more than CREATE
-- INDEX, COMMENT or ADD COLUMN.
-- In one transaction, so that dbmate can run it too: writes to messages wait while the index is built.

-- migrate:up
-- posduif: allow require-concurrent-index-creation
CREATE INDEX idx_messages_inbox ON messages (recipient_id, created_at DESC);
-- posduif: allow require-concurrent-index-deletion
DROP INDEX idx_messages_recipient;

-- migrate:down
-- posduif: allow require-concurrent-index-creation
CREATE INDEX idx_messages_recipient ON messages (recipient_id);
-- posduif: allow require-concurrent-index-deletion
DROP INDEX idx_messages_inbox;
