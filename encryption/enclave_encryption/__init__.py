"""The owner's side: describe a directory, encrypt it under a KMS key, show what a file says."""
