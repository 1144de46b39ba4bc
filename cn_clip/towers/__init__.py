"""Image and text towers, each a module of `image/` or `text/` with `Options` and `build(options)`."""
