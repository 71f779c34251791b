"""The documentation site: pages of docs/, and a reference generated from the code."""
