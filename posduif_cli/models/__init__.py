"""The values that cross layers: frozen, and free of behaviour that needs another layer; one file per wing."""
