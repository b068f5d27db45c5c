"""Pure choices: scores in, rows out."""
