"""Where the organs meet: what the faces and Python programs talk to."""
