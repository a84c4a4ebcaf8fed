"""Short measured trials, successively halved."""
