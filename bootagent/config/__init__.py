"""From TOML files and an instance's tags to one frozen configuration.

- ``document.py``: the TOML files merged, each key with the file it came from
- ``schema.py``: the shape, checked against ``schema.json``; every error at once
- ``rules.py``: what a schema cannot say, such as "this role names an app that is not there"
- ``coordinates.py``: ``{environment}`` and ``{tag:Team}`` filled in
- ``model.py``: the frozen result
- ``resolve.py``: document + tags → result
"""
