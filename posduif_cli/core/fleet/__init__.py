"""Who is where, and how many at once: find, open, fan out, place."""
