"""A tenant's life: create, bulk, suspend, drop, adopt."""
