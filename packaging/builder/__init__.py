"""Makes what is installed: the Debian package and the single file, byte for byte the same from the same commit."""
