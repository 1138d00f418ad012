"""The local stand-in for AWS KMS and S3: moto behind a layer that enforces attestation.

It does what moto does not: checks signatures of requests, evaluates key policies, verifies
attestation documents under a local root and encrypts answers for the enclave.
Source: DESIGN section 8.
"""
