"""What stages share of retrieval: encoding, searching, and the tuning of the query encoder."""
