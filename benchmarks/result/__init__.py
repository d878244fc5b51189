"""The experiment of docs/results.md on a real pair: its data, its rows, and the page that shows what they gave."""
