"""The egress proxy: the enclave's only way to the network, and the user's say in it."""
