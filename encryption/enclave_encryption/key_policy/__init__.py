"""Key policies of packages' KMS keys: written, judged, simulated, shown."""
