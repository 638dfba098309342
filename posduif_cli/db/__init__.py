"""Everything that talks to PostgreSQL; the only layer that imports psycopg."""
