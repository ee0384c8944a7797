"""The contenders' own programs: each knows one queue and nothing of the benchmark.

Every one answers to the same command line, in the environment that its queue is installed in:

    SUBJECT prepare DSN                                make its schema
    SUBJECT enqueue DSN one|many|copy|paced COUNT      prints the seconds it took
    SUBJECT drain DSN CONCURRENCY COUNTER              works until SIGTERM, and counts starts in the file COUNTER.PID

`many` enqueues by 1,000; `paced` one every 20 ms with the time in the payload, so that the
job can tell how long it waited.
"""
