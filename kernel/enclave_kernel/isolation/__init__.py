"""What separates the processes inside the enclave: limits, users, namespaces."""
