"""One reader a kind of file: from bytes to texts or records, in bounded memory, and what is malformed set aside."""
