"""What outlives a request: pictures behind signed links, and answers on their way out."""
