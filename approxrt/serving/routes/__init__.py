"""Adapters: each module turns one known API's requests into calls on the registry, and answers in that API's manner."""
