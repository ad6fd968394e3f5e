"""Images: registry client, store, unpacking."""
