"""RA-DIT as a service: a finished run that stays in memory, a queue before it, and its pages over HTTP."""
