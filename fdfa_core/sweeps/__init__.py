"""Many runs at once: processes on this machine by default, a Dask cluster by one option."""
