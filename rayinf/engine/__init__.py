"""Where work is done: stages over shards, the runners that map them, the store of factors. The only user of Ray."""
