"""Where chunks and questions come from: a generated world, a folder, the paper's data."""
