"""One HTML file that shows results and opens without a network; see `gather`, `render`."""
