"""Walkthroughs: commands that go through the whole loop on this machine and verify each step."""
