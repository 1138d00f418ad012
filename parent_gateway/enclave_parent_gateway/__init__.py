"""The parent instance's side: gateway, kernel provisioner, backends and the CLI `enclave`."""
