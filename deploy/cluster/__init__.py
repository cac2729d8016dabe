"""Several hosts as one platform: whom a machine trusts, and what hosts know of each other."""
