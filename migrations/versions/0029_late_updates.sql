-- Updates that are committed late. Applied by 0029_late_updates.py.

alter table procjobs.digest_schedules add column told_lately uuid[];
comment on column procjobs.digest_schedules.told_lately is
  'Updates of the ten minutes before told_until that were looked at: of those minutes the next digest tells only what is not among them. Null: there was none yet.';
