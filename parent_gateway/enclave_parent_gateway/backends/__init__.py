"""Ways to run an enclave: one module per backend, `base` for what they have in common."""
