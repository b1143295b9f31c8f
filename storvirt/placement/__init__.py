"""Where an image's bytes are, and which host is nearest to them. Pure: maps in, reasons out."""
