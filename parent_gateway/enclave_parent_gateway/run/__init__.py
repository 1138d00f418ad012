"""`enclave run`: a script of an encrypted package, run in the enclave from the command line.

The command reads the package and the user's files on the parent instance, has a session in the
enclave hand them to a vault, and writes what comes back. Source: docs/spec/run.md.
"""
