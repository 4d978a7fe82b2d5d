"""Where runs stand; nothing here imports torch."""
