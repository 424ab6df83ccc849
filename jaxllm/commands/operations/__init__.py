"""Commands for those who operate runs: hosts before a run, and runs while they train."""
