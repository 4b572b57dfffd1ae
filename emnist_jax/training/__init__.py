"""How a run trains: the compiled step, the loop over epochs, its record, and what it leaves on disk."""
