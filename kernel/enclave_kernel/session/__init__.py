"""The user's side inside the enclave: the IPython kernel process, its magics and proxies."""
