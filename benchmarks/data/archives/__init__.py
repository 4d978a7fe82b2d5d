"""Official archives: where they are, download, unpack."""
