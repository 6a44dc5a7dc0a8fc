"""Programs for those who work on the project. Not installed, imported by no other code."""
