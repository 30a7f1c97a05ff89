"""Question banks: where items of text come from, and how they become records."""
