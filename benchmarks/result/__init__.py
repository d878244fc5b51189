"""The experiment of docs/results.md on a real pair: its data, its trainings (rows), and the page with their results."""
