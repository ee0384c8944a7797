-- Letters: mails by any template, to recipients, persons and bare addresses.
-- Owns:        rows of procjobs.notification_jobs, together with notifications.sql.
-- Lock order:  procrastinate_jobs, then notification_jobs.
-- A letter is a notification: the same queue job, the same tries, the same delivery log.

create or replace function procjobs.letter_templates()
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array[
    'notification',
    'alert',
    'daily_report',
    'digest',
    'event_reminder',
    'invitation',
    'invoice',
    'notices',
    'payment_reminder',
    'reengagement',
    'report_ready',
    'tips',
    'welcome'
  ]
$$;
comment on function procjobs.letter_templates() is
  'Templates that a letter can be written with: each is a pair of files in templates/mail.';

create or replace function procjobs.mail_address_problem(p_address text)
returns text
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- Lengths as in RFC 5321 (4.5.3.1); no white space and nothing unseen of Unicode but joiners, which words of some scripts have.
  select format('address %s is not an e-mail address', quote_literal(p_address))
  where p_address !~ '^[^[:space:]@<>"(),:;\[\]\\[:cntrl:]]+@[^[:space:]@<>"(),:;\[\]\\[:cntrl:]]+$'
    or p_address ~ '[\u0080-\u00a0\u00ad\u1680\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]'
    or octet_length(p_address) > 254
    or octet_length(split_part(p_address, '@', 1)) > 64
    or exists (
      select
      from unnest(string_to_array(split_part(p_address, '@', 2), '.')) l (label)
      where l.label = '' or length(l.label) > 63 or l.label ~ '^-|-$|[!-,/:-@[-^`{-~]'
    )
$$;
comment on function procjobs.mail_address_problem(text) is
  'Why this is no e-mail address; null if it may be one, or is null. Whether the domain exists is for the DNS to say.';

create or replace function procjobs.letter_problems(
  p_template text,
  p_content jsonb,
  p_recipient uuid,
  p_person uuid,
  p_address text,
  p_urgency text
)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select format('template %s is not known', coalesce(quote_literal(p_template), 'null'))
    where p_template is null or p_template <> all (procjobs.letter_templates())
  ) || array_remove(array[procjobs.urgency_problem(p_urgency)], null) || array(
    select 'one of recipient, person and address says who gets it'
    where num_nonnulls(p_recipient, p_person, p_address) <> 1
  ) || array(
    select procjobs.mail_address_problem(p_address) where procjobs.mail_address_problem(p_address) is not null
  ) || case
    when p_template = 'notification' then procjobs.content_problems(p_content, false)
    when procjobs.content_form_problem(p_content) is not null then array[procjobs.content_form_problem(p_content)]
    else procjobs.letter_field_problems(p_template, p_content)
  end
$$;
comment on function procjobs.letter_problems(text, jsonb, uuid, uuid, text, text) is
  'What keeps a letter from being written and sent, one sentence each; empty if nothing does.';

create or replace function procjobs.check_letter(
  p_template text,
  p_content jsonb,
  p_recipient uuid,
  p_person uuid,
  p_address text,
  p_urgency text,
  p_group uuid
)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[] := procjobs.letter_problems(p_template, p_content, p_recipient, p_person, p_address, p_urgency);
begin
  if cardinality(v_problems) > 0 then
    raise exception 'the letter cannot be delivered: %', v_problems[1]
      using errcode = 'PJ023',
            detail = array_to_string(v_problems, E'\n'),
            hint = format('Templates: %s. See each with: procjobs mail preview TEMPLATE',
              array_to_string(procjobs.letter_templates(), ', '));
  end if;
  if p_recipient is not null then
    perform procjobs.check_addressee(p_recipient, p_group, null, 'email');
  elsif p_person is not null then
    perform procjobs.check_person(p_person);
  end if;
end
$$;
comment on function procjobs.check_letter(text, jsonb, uuid, uuid, text, text, uuid) is
  'Raises PJ023, or PJ020 and PJ021 for whom it is to, unless a letter like this can be written and sent.';

create or replace function procjobs.enqueue_letter(
  template text,
  content jsonb,
  recipient uuid default null,
  person uuid default null,
  address text default null,
  address_name text default null,
  notification_type text default null,
  urgency text default 'normal',
  scheduled_at timestamptz default null,
  group_id uuid default null
)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_row procjobs.notification_jobs;
begin
  perform procjobs.require_host_of_mail();
  perform procjobs.check_letter(
    enqueue_letter.template, enqueue_letter.content, enqueue_letter.recipient, enqueue_letter.person, enqueue_letter.address,
    enqueue_letter.urgency, enqueue_letter.group_id);

  v_row.recipient_id := enqueue_letter.recipient;
  v_row.person_id := enqueue_letter.person;
  v_row.address := enqueue_letter.address;
  v_row.address_name := case when enqueue_letter.address is not null then enqueue_letter.address_name end;
  v_row.group_id := enqueue_letter.group_id;
  v_row.template := enqueue_letter.template;
  v_row.notification_type := coalesce(enqueue_letter.notification_type, enqueue_letter.template);
  v_row.urgency := enqueue_letter.urgency;
  v_row.delivery_method := 'email';
  v_row.content := enqueue_letter.content;
  v_row.scheduled_for := enqueue_letter.scheduled_at;
  return procjobs.request_notification(v_row);
end
$$;
comment on function procjobs.enqueue_letter(text, jsonb, uuid, uuid, text, text, text, text, timestamptz, uuid) is
  'Requests a mail written by a template, to a recipient, a person or a bare address, in the caller''s transaction: a row of '
  'notification_jobs, whose id is returned, and its queue job. Three tries, one and two minutes apart. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.check_person(p_person uuid)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_email text;
begin
  perform procjobs.require_host('host_people');
  select p.email into v_email from procjobs.host_people p where p.id = p_person;
  if not found then
    raise exception 'unknown person %', coalesce(p_person::text, 'null')
      using errcode = 'PJ020',
            detail = 'no such row in procjobs.host_people',
            hint = 'select id, name from procjobs.host_people lists whom letters can go to.';
  end if;
  if not procjobs.is_reachable(v_email) then
    raise exception 'person % has no e-mail address', p_person
      using errcode = 'PJ023',
            detail = 'host_people.email is empty',
            hint = 'Give the person an address in the application.';
  end if;
end
$$;
comment on function procjobs.check_person(uuid) is 'Raises PJ020 unless the person exists, PJ023 when there is no address.';

create or replace function procjobs.addressee(p_job procjobs.notification_jobs)
returns table (name text, address text, timezone text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if p_job.address is not null then
    return query select p_job.address_name, p_job.address, 'UTC'::text;
  elsif p_job.person_id is not null then
    perform procjobs.require_host('host_people');
    return query
      select p.name, nullif(btrim(p.email), ''), coalesce(p.timezone, 'UTC')
      from procjobs.host_people p
      where p.id = p_job.person_id;
  else
    return query
      select r.name, procjobs.recipient_address(p_job.delivery_method, to_jsonb(r), p_job.content), coalesce(r.timezone, 'UTC')
      from procjobs.host_recipients r
      where r.id = p_job.recipient_id;
  end if;
end
$$;
comment on function procjobs.addressee(procjobs.notification_jobs) is
  'Who gets a notification and where, as the application says now. No row: gone; address null: cannot be reached any more.';
