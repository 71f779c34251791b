"""Commands that manage records, states and servers."""
