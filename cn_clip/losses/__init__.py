"""What pulls matching pictures and captions together. Losses know features and ids, never ranks or files."""
