"""What is computed from results, and the tables that say it."""
