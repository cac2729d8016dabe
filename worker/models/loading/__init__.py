"""From the ``model`` setting to a pipeline on its device."""
