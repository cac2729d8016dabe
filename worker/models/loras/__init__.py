"""LoRA adapters: small files that change how a model draws, chosen by each request."""
