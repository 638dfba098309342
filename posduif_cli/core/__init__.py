"""The verbs, one module per noun in the plural; they return models and print nothing."""
