"""Durable jobs: what is asked for, and who draws it. Above engine and storage, below the API."""
