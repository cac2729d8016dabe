"""Pictures that users send: never decoded where pictures are drawn."""
