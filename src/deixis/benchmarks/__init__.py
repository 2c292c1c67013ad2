"""One file, one benchmark: disk layout, splits, scored frames, submission format."""
