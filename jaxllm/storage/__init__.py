"""Object stores, `gs://` and `s3://`: paths, downloads, a mirror of small files, and a lease."""
