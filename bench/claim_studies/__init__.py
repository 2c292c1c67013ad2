"""Studies of the papers' claims at module level: true object tracks stand for what a network found in the frames."""
