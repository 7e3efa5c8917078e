"""Images from texts, and what looks at the two together."""
