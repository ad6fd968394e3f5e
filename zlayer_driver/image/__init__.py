"""Images: registry client, store, unpacking, local facts."""
