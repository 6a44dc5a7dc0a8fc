"""Tokens out: from a request to the tokens that answer it."""
