"""The command line, and nothing but: a command parses, makes one core call, shows the result."""
