"""Everything that reaches a screen, a pipe or a picture."""
