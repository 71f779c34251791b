"""A user's own data: entry, scaled params, report."""
