"""Pictures and captions: how they are stored, read, ordered and put into batches. Knows no model."""
