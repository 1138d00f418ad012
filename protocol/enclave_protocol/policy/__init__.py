"""AWS key policies: parsed strictly, evaluated as IAM does. Bytes in, a decision out; no I/O."""
