"""Places outside the local file system: URIs of object stores, reached through pyarrow.fs, with bounded retries."""
