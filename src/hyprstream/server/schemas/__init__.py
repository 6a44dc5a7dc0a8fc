"""What requests may say. A field is applied, ignored by name, or refused."""
