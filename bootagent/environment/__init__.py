"""What services find in their environment, beside what the configuration says outright.

- ``values.py``: one variable as ``chpst -e`` reads it from a file, and what cannot be one
- ``directories.py``: the tree of directories, merged from the outside in
- ``concealed.py``: a value that does not show itself
- ``secrets.py``: the directories in memory that hold a service's secrets
- ``fetch.py``: secrets from Parameter Store and Secrets Manager
- ``checkout.py``: the tree from a git repository
- ``dump.py``, ``exchange.py``: ``.env`` files and Heroku's dumps, into a directory and back
"""
