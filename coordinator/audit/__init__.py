"""`audit`: is everything that was stored complete and in order?"""
