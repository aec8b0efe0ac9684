"""RA-DIT's equations as pure functions of arrays: losses, training steps, generation and scoring."""
