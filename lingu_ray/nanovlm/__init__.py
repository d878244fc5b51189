"""nanoVLM in Idefics3's words: its checkpoint read, its weights renamed, its processor rebuilt."""
