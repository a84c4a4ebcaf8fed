"""What every room may use and no user types: files, words for a terminal, signals, and whom to trust."""
