"""Fixtures and what tests share, and nothing else: no test module imports another."""
