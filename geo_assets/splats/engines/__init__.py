"""Adapters of the splat engines; each is an entry point of the group ``geo_assets.splat_engines``."""
