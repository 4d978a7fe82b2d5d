"""The trained models that runs keep: written, loaded, used on images, exported."""
