"""The pages of the site: every block of code on them is run by a test."""
