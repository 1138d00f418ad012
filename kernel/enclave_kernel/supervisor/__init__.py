"""The enclave's root process: streams, kernels, vaults, key release. It runs nobody's code."""
