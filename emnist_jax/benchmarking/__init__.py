"""Speed beside PyTorch's: the same networks and steps in both, in processes of their own, timed in turn."""
