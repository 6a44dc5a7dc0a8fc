"""The terminal: parse, call the runtime, print."""
