"""Everything outside the program: devices, processes, storage, others' checkpoints; and the training loop."""
