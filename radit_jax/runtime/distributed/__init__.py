"""Processes that find each other, the device mesh, and the memory of accelerators."""
