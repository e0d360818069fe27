"""Programs that run in another Python than ours; each is one file that imports nothing of this package."""
