"""The configuration, and lists of tenants: the only reader of the environment and of YAML."""
