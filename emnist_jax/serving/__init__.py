"""The page to draw on, and the server that answers it with a trained network."""
