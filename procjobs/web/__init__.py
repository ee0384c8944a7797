"""The web pages of procjobs."""
