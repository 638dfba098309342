-- The tenant schema as its owner specified it. Two tables refer to each other, so the
-- foreign key from users to enrollment_tokens is added once both exist.

-- migrate:up
CREATE TABLE users (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    username VARCHAR(255) NOT NULL UNIQUE,
    user_type VARCHAR(50) NOT NULL,
    device_id VARCHAR(255),
    online_status BOOLEAN DEFAULT false,
    last_seen TIMESTAMP,
    enrolled_at TIMESTAMP,
    enrollment_token_id UUID,
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW(),
    CONSTRAINT chk_user_type CHECK (user_type IN ('web', 'mobile'))
);

CREATE TABLE messages (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    sender_id UUID NOT NULL,
    recipient_id UUID NOT NULL,
    content TEXT NOT NULL,
    status VARCHAR(50) NOT NULL DEFAULT 'pending_sync',
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW(),
    synced_at TIMESTAMP,
    read_at TIMESTAMP,
    CONSTRAINT chk_status CHECK (status IN ('pending_sync', 'synced', 'read')),
    CONSTRAINT fk_messages_sender FOREIGN KEY (sender_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_messages_recipient FOREIGN KEY (recipient_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE TABLE sync_metadata (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    device_id VARCHAR(255) NOT NULL UNIQUE,
    last_sync_timestamp TIMESTAMP,
    pending_outgoing_count INTEGER DEFAULT 0,
    sync_status VARCHAR(50) DEFAULT 'idle',
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW(),
    CONSTRAINT chk_sync_status CHECK (sync_status IN ('idle', 'syncing', 'error'))
);

CREATE TABLE enrollment_tokens (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    token UUID NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    created_by UUID NOT NULL REFERENCES users (id),
    tenant_id VARCHAR(255) NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    used_at TIMESTAMP,
    device_id VARCHAR(255),
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW()
);

ALTER TABLE users
    ADD CONSTRAINT users_enrollment_token_id_fkey
    FOREIGN KEY (enrollment_token_id) REFERENCES enrollment_tokens (id);

CREATE INDEX idx_users_user_type ON users (user_type);
CREATE INDEX idx_users_device_id ON users (device_id) WHERE device_id IS NOT NULL;
CREATE INDEX idx_users_enrollment_token ON users (enrollment_token_id) WHERE enrollment_token_id IS NOT NULL;

CREATE INDEX idx_messages_sender ON messages (sender_id);
CREATE INDEX idx_messages_recipient ON messages (recipient_id);
CREATE INDEX idx_messages_recipient_status ON messages (recipient_id, status);
CREATE INDEX idx_messages_status ON messages (status);
CREATE INDEX idx_messages_created_at ON messages (created_at DESC);

CREATE INDEX idx_sync_metadata_device ON sync_metadata (device_id);
CREATE INDEX idx_sync_metadata_status ON sync_metadata (sync_status);

CREATE INDEX idx_enrollment_tokens_token ON enrollment_tokens (token);
CREATE INDEX idx_enrollment_tokens_created_by ON enrollment_tokens (created_by);
CREATE INDEX idx_enrollment_tokens_expires_at ON enrollment_tokens (expires_at);
CREATE INDEX idx_enrollment_tokens_used_at ON enrollment_tokens (used_at) WHERE used_at IS NULL;

CREATE FUNCTION update_updated_at_column()
RETURNS TRIGGER AS $$
BEGIN
    NEW.updated_at = NOW();
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

CREATE FUNCTION update_synced_at()
RETURNS TRIGGER AS $$
BEGIN
    IF NEW.status = 'synced' AND OLD.status != 'synced' THEN
        NEW.synced_at = NOW();
    END IF;
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

CREATE FUNCTION update_read_at()
RETURNS TRIGGER AS $$
BEGIN
    IF NEW.status = 'read' AND OLD.status != 'read' THEN
        NEW.read_at = NOW();
    END IF;
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;

CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_messages_updated_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_messages_synced_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_synced_at();
CREATE TRIGGER update_messages_read_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_read_at();
CREATE TRIGGER update_sync_metadata_updated_at BEFORE UPDATE ON sync_metadata
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_enrollment_tokens_updated_at BEFORE UPDATE ON enrollment_tokens
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

-- migrate:down
ALTER TABLE users DROP CONSTRAINT users_enrollment_token_id_fkey;
DROP TABLE enrollment_tokens;
DROP TABLE sync_metadata;
DROP TABLE messages;
DROP TABLE users;
DROP FUNCTION update_read_at();
DROP FUNCTION update_synced_at();
DROP FUNCTION update_updated_at_column();
