"""What a schema should be, is, and how it gets there."""
