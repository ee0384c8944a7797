-- Muted groups in digests of all groups. Applied by 0030_muted_groups.py.

alter table procjobs.digest_schedules
  add column held_back jsonb,
  add constraint held_back_is_an_object check (jsonb_typeof(held_back) = 'object');
comment on column procjobs.digest_schedules.held_back is
  'Groups that were muted when the last digest was made, each with the time since which nothing of it was told: the first digest after the mute begins there.';
