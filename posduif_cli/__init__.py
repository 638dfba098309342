"""Administer the tenant databases of the Posduif messaging service."""

__version__ = "0.1.0"
