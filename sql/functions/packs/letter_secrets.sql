-- Secrets of letters: what a link opens without a login. Made by the worker for each try, kept here as a hash only.
-- Owns:        procjobs.letter_secrets.
-- Lock order:  notification_jobs, then what the secret opens, then letter_secrets.
-- A letter asks for one by the key secret_path of its content; the worker fills in secret_url: the site, that path, the secret.
-- So the secret is in the mail and nowhere else: in no row, no argument of a job, no parameter of a statement.

create or replace function procjobs.keep_letter_secret(p_delivery bigint, p_hash bytea)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_job procjobs.notification_jobs;
  v_opens uuid;
  v_fault text;
begin
  select n.* into v_job
  from procjobs.notification_delivery_logs l
  join procjobs.notification_jobs n on n.id = l.job_id
  where l.id = p_delivery
  for no key update of n;
  if v_job.template = 'invitation' then
    select o.opens, o.fault into v_opens, v_fault from procjobs.open_invite_letter(v_job.id) o;
  else
    v_fault := format('letters of the template %s have no secrets', coalesce(v_job.template, 'null'));
  end if;
  if v_fault is null then
    insert into procjobs.letter_secrets (hash, notification_id, opens, made_at)
    values (p_hash, v_job.id, v_opens, procjobs.clock());
  end if;
  return v_fault;
end
$$;
comment on function procjobs.keep_letter_secret(bigint, bytea) is
  'Keeps the SHA-256 of the secret that a letter is about to be sent with; what it opens depends on the template. '
  'Returns null, or why the letter is not to be sent any more. Definer: the worker role has no rights on tables.';
