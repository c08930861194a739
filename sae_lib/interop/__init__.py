"""SAEs that others released, read from local folders into our coders: one file per format."""
