"""What people see of a run: the terminal, TensorBoard, and pictures."""
