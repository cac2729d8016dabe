"""The same zero-cost service on other servers, for comparison. Run by ``loadtest/overhead``."""
