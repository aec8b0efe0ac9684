"""The report of a run: what its workdir says, as one page."""
