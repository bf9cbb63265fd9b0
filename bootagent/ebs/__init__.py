"""Amazon EBS: snapshots found, volumes made, attached and let go, each state waited for under a deadline."""
