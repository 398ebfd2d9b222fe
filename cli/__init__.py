"""The `ntk` command line: one thin function per command."""
