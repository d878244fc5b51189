"""The corpus: sources become one mixed, ordered set of rows on disk, which workers read, encode and batch."""
