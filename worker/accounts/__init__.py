"""Who may draw: keys as every worker knows them, and signed proofs of who somebody is."""
