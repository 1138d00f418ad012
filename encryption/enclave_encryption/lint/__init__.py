"""What an owner should look at before encrypting: shown on the owner's screen, in no file."""
