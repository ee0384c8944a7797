-- Letters: notifications to persons and bare addresses, by any template. Applied by 0012_letters.py.

alter table procjobs.notification_jobs
  alter column recipient_id drop not null,
  add column person_id uuid,
  add column address text,
  add column address_name text,
  add column template text not null default 'notification',
  add constraint one_addressee check (num_nonnulls(recipient_id, person_id, address) = 1),
  add constraint name_of_address check (address_name is null or address is not null);
comment on table procjobs.notification_jobs is
  'One message to one addressee, from the request to its end. Made by procjobs.enqueue_notification_job and '
    'procjobs.enqueue_letter; the work is done by the queue job job_id.';
comment on column procjobs.notification_jobs.recipient_id is 'Who gets it: host_recipients.id.';
comment on column procjobs.notification_jobs.person_id is 'Who gets it, in place of a recipient: host_people.id.';
comment on column procjobs.notification_jobs.address is
  'Where it goes, when it is neither to a recipient nor to a person: somebody who is invited, an operator.';
comment on column procjobs.notification_jobs.address_name is 'How to address whoever reads mail there.';
comment on column procjobs.notification_jobs.template is 'The letter that is written from the content: notification, invitation, digest, ...';
comment on column procjobs.notification_jobs.content is
  'What the template needs. For notification: subject, body, preview, action_label, action_url, and whatever else the '
    'application keeps with it.';

create index notification_jobs_person on procjobs.notification_jobs (person_id, created_at desc)
  where person_id is not null;

-- It returns the template, too: made anew by sql/functions/packs/delivery_tries.sql.
drop function if exists procjobs.begin_delivery(uuid, text, text);
