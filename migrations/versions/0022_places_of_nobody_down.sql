-- Undoes 0022_places_of_nobody.sql.

alter table procjobs.queue_settings
  drop column nobody_priority, drop column nobody_id, drop column look_priority, drop column look_id;
