"""Image builder and the local stand-ins for NSM and cloud. Nothing here is in the enclave."""
