"""The owner's process: decrypts and runs one package for one notebook."""
