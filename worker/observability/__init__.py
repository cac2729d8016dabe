"""What a worker tells of itself and of what it drew: metrics and the audit log."""
