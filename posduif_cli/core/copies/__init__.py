"""A second copy of a tenant: dump it, prove it by restoring it, restore it."""
