"""What can be told without changing anything: facts as plain data, and as text for people."""
