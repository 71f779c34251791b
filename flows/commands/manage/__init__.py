"""Commands for records, training states and servers."""
