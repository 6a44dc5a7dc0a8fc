"""What is on this machine, in SQL: the SQL joint of the runtime."""
