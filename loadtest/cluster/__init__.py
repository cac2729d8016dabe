"""Several hosts on this machine: namespaces, a network of theirs, a real database and store."""
