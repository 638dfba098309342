-- Gives tenants the rights that grants.sql gained since 0003: of posduif_cron, and of the support desk over phones
-- that are lost. grants.sql runs in the transaction of this file, as it does after every file that is more than
-- CREATE INDEX, COMMENT or ADD COLUMN.

-- migrate:up
-- idx_messages_inbox begins with the same column. To drop an index takes a moment, whatever its size.
-- posduif: allow require-concurrent-index-deletion
DROP INDEX idx_messages_recipient;

-- migrate:down transaction:false
CREATE INDEX CONCURRENTLY idx_messages_recipient ON messages (recipient_id);
