"""Store: episodes on disk, written once and whole, found again by their words and by what the model thought of them."""
