"""Object stores: `gs://`, `s3://` and others that fsspec knows; the only home of fsspec."""
