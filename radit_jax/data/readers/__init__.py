"""Files that people bring, read with errors that say where."""
