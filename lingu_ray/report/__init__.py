"""Pages, plots and the model card of a run: what people look at."""
