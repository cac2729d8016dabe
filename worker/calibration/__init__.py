"""What calls cost on this device: measured once, stored, and read by every start."""
