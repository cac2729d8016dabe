"""One picture on several devices: a lead, a helper process on each other one, shared steps."""
