"""What outlives a request: pictures behind signed links."""
