"""Pulling a bundle: parallel ranged reads, verification, decompression and unpacking, all at once.

    bundle.py    the story: what to pull, and the pipeline made of all below
    head.py      what S3 says about an object before it is read
    ranges.py    many ranged reads of one immutable object, handed on in order
    digests.py   are these the bytes that were published?
    formats.py   which archive a key names, and the program that decompresses it
    pipeline.py  the processes: decompressor and unpacker, as the app's user
    program.py   the command line that starts the unpacker in a bare interpreter

and inside that process, with the standard library alone:

    unpack.py    its main function
    untar.py     a tar stream, parsed and checked in one go
    unzip.py     a zip archive
    tree.py      what an archive may do to a directory, and the doing of it
"""
