"""``geo-assets serve``: the city in a browser; a small web app that reads the lake and writes nothing."""
