"""`certify`: the acceptance run and its report."""
