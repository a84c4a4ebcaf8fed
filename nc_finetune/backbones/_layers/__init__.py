"""Where the blocks of anybody's network are, and how their outputs are taken."""
