"""nanoVLM as Idefics3: reads its checkpoint, renames its weights, rebuilds its processor."""
