"""Photos to sparse models: features and pose priors, pairs and matches, COLMAP models at their true place."""
