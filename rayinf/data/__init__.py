"""Tables in and out: Parquet shards, batches of NumPy, labels, score and factor files, run folders. No maths."""
