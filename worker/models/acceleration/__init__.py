"""What makes Z-Image faster on a device."""
