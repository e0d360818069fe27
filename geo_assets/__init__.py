"""A place on the map, turned into data people can use: Gaussian splats and geolocation cells."""
