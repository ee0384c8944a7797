-- Undoes 0012_letters.sql. What went to no recipient goes.

delete from procjobs.notification_jobs where recipient_id is null or template <> 'notification';
drop index procjobs.notification_jobs_person;
alter table procjobs.notification_jobs
  drop constraint one_addressee,
  drop constraint name_of_address,
  drop column template,
  drop column address_name,
  drop column address,
  drop column person_id,
  alter column recipient_id set not null;
comment on table procjobs.notification_jobs is
  'One message to one recipient, from the request to its end. Made by procjobs.enqueue_notification_job; the work is '
    'done by the queue job job_id.';
comment on column procjobs.notification_jobs.content is 'subject, body, preview, action_label, action_url, and '
  'whatever else the application keeps with it.';

drop function if exists procjobs.begin_delivery(uuid, text, text);
