"""What hostile, broken and too many clients do to a server."""
