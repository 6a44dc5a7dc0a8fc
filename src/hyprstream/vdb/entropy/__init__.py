"""Integers to few bytes and back, exactly: integer arithmetic decides every symbol."""
