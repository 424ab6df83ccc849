"""Scores of the next token: penalties, rules and limits for each row, and the choice."""
