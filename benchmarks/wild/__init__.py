"""Training scripts that others published, compared as they are: their sources are read where the reader has them."""
