"""``zimage``: the verbs of an operator."""
