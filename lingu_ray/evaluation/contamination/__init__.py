"""Items of evaluation tasks that stand in the rows a run is trained on: their scores are of memory."""
