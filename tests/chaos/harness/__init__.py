"""What the chaos tests stand on, and where each scenario of the fault plan is tested.

    ledger      what the client knows, on disk outside PostgreSQL      client      enqueues by it
    ground      tables of runs, effects and transitions                fleet       workers as processes
    proxy       the network, failing                                   storm       SQLSTATEs out of the blue
    clock       the database's time, standing still                    invariants  I1 to I12
    hands       workers played by hand, safeguards taken out           reads       what a statement reads, dead or not
    site        all of it for one scenario

The invariants are checked at the end of every scenario (`Site.check`). That they see what the safeguards guard against
is tested in tests/chaos/test_mutations_*.py, of schedules in tests/chaos/test_schedulers.py; which safeguard and which
mutation belong to a scenario: docs/faults.md. All faults at random: `scripts/chaos`.

    1-5     test_death.py; the points are procjobs.engine.failpoints
    6, 7    test_death.py
    8-10    test_database.py
    11-15   test_proxy.py
    16-18   test_storms.py; a finish that fails three times: engine/test_upstream_faults.py (01)
    19      test_database.py
    20      test_failover.py, with Debian's PostgreSQL 15
    21, 22  test_zombie.py; call by call: engine/test_upstream_faults.py (02, 03), engine/test_finish.py
    23-25   test_shutdown.py; in one process: engine/test_worker.py, engine/test_upstream_faults.py (11, 12),
            engine/test_worker_faults.py (upgrades, signals, forks)
    26, 27  test_schedulers.py; pg_cron and workers that come and go: test_pg_cron.py; call by call:
            sql/schedules, sql/test_schedules_many.py, engine/test_schedules.py
    28      test_clock.py
    29      sql/test_cron_oracle.py, sql/test_schedules_month.py
    30-32   test_locks.py; call by call: engine/test_locks.py, engine/test_settle.py, engine/test_rescue.py
    33, 34  test_scale.py; plan by plan: engine/test_plans.py
    35      test_payloads.py; sql/test_arguments.py, engine/test_arguments.py, engine/test_upstream_faults.py (06)
    36      test_notify.py
    37      packs/test_suppression.py; through a worker: packs/test_delivery.py, packs/test_outage.py; workers that
            die in a mail: test_mail.py
    39, 40  test_purge.py; engine/test_upkeep.py, sql/test_control.py
    42      web/test_invitations.py (50 at once), packs/invitations/test_links.py (expired)

Limits, unique keys and batches (I13 to I15) have no scenario but the soak and test_mutations_limits.py.
38 (calendars) and 41 (steps) belong to those features.
"""
