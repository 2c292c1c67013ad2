"""Loss terms, matching of queries to objects, and the set loss that joins them."""
