"""Puts this folder on the import path, for helpers that tests share (`graph_strategies`)."""
