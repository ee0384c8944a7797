-- Where in a fair queue the jobs without a tenant stand. Applied by 0022_places_of_nobody.py.

alter table procjobs.queue_settings
  add column nobody_priority integer,
  add column nobody_id bigint,
  add column look_priority integer,
  add column look_id bigint;
comment on column procjobs.queue_settings.nobody_priority is
  'Of a fair queue: from this place on (priority, id) its next claim looks for jobs without a tenant. Null: from the front.';
comment on column procjobs.queue_settings.nobody_id is 'The id of that place.';
comment on column procjobs.queue_settings.look_priority is
  'How far the claims have looked again through what stands before that place, for jobs that came there since. Null: from the front.';
comment on column procjobs.queue_settings.look_id is 'The id of that place.';
