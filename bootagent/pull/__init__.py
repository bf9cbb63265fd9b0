"""Pulling a bundle: parallel ranged reads, verification, decompression and unpacking, all at once.

    ranges.py   many ranged reads of one immutable object, handed on in order
    formats.py  which archive a key names, and the program that decompresses it
    unpack.py   a tar stream into a fresh directory, in a process of its own as the app's user
    bundle.py   the pipeline made of the three
"""
