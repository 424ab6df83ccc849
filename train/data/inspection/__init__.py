"""Shows the data as a model will see it: lengths, shares, decoded rows; a table and a page."""
