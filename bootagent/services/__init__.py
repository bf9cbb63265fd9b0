"""A service: its runit directory and run script, what it runs in, and how it comes up, is watched and goes down."""
