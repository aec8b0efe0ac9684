"""What one accelerator does on every path of the system: `python -m benchmarks.gpu`."""
