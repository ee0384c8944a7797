"""Benchmarks: stock Procrastinate and procjobs side by side, on one server, in one run.

Rates are of jobs that do nothing, from the first claim to the last acknowledgement, both read from the database. Machines are
noisy: rounds of all contenders are interleaved, medians are shown, and only ratios within one run mean anything.
"""
