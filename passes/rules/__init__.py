"""Rules of `simplify` and `layout`, by family. Each rule's docstring is its equation."""
