"""Host code that is neither CPU nor GPU kernel."""
