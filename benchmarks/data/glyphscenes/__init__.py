"""GlyphScenes, the rendered dataset, and the CLIP trained on its captions."""
