"""What a model will see of its data: lengths, shares and decoded rows, as a table and a page."""
