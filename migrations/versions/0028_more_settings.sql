-- The log of settings has more kinds. Applied by 0028_more_settings.py.

-- Only triggers write it, and which there are says procjobs.setting_kinds().
alter table procjobs.setting_changes drop constraint kind_known;
comment on table procjobs.setting_changes is
  'Every change of what people set, written by triggers; only added to, kept for a year. Read procjobs.setting_log.';
comment on column procjobs.setting_changes.kind is 'What was changed: procjobs.setting_kinds().';
