-- What the current sync engine reads and writes beyond the first schema. It looks for the
-- index by exactly this name and refuses to start when it can neither find nor create it.

-- migrate:up
ALTER TABLE users ADD COLUMN last_message_sent TEXT;
ALTER TABLE sync_metadata ADD COLUMN last_synced_lsn pg_lsn;
-- The table has a row a device, and the column is new: there is nothing to index yet.
-- posduif: allow require-concurrent-index-creation
CREATE INDEX idx_sync_metadata_lsn ON sync_metadata (last_synced_lsn) WHERE last_synced_lsn IS NOT NULL;

-- migrate:down
DROP INDEX idx_sync_metadata_lsn;
ALTER TABLE sync_metadata DROP COLUMN last_synced_lsn;
ALTER TABLE users DROP COLUMN last_message_sent;
