"""Users, tokens, devices, enrollments, messages."""
