"""The corpus: sources become one mixed, ordered set of rows on disk; workers read, encode and batch them."""
