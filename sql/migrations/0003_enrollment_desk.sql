-- What the people who hand out enrollment tokens need: whose phone it is for, that it was
-- revoked, and which token it stands in for.

-- migrate:up
ALTER TABLE enrollment_tokens
    ADD COLUMN revoked_at TIMESTAMP,
    ADD COLUMN label TEXT,
    ADD COLUMN replaces UUID;

-- migrate:down
ALTER TABLE enrollment_tokens
    DROP COLUMN replaces,
    DROP COLUMN label,
    DROP COLUMN revoked_at;
