"""`explain`: why was a decision made? Computed again from the stored messages."""
