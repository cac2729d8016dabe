"""What the workers of a cell share: who may draw what, who is alive, what is known of a request."""
