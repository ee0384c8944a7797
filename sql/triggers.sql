-- Triggers on Procrastinate's job table, and on tables of settings: who calls which function, when.
-- Owns:        the triggers pj_* of procrastinate_jobs and of procjobs' own tables. Upstream's own are gone (0002).
-- Lock order:  share row exclusive on procrastinate_jobs while they are replaced.
-- What decides without a row is in WHEN, so that the bulk paths pay nothing for it; and briefly, since PostgreSQL reads the
-- text of each condition anew in every statement.

drop trigger if exists pj_before_insert on public.procrastinate_jobs;
create trigger pj_before_insert
  before insert on public.procrastinate_jobs
  for each row
  when (new.scheduled_at is not null or new.lock is not null)
  execute function procjobs.set_waiting();
comment on trigger pj_before_insert on public.procrastinate_jobs is
  'A new job with a time or a lock may have to wait for it.';

drop trigger if exists pj_before_requeue on public.procrastinate_jobs;
create trigger pj_before_requeue
  before update of status, scheduled_at, lock on public.procrastinate_jobs
  for each row
  when (
    new.status = 'todo' and (
      old.status <> 'todo'
      or old.scheduled_at is distinct from new.scheduled_at
      or old.lock is distinct from new.lock
    )
  )
  execute function procjobs.set_waiting();
comment on trigger pj_before_requeue on public.procrastinate_jobs is
  'A job that comes back, or gets another time or lock, may have to wait as a new one.';

drop trigger if exists pj_before_transition on public.procrastinate_jobs;
create trigger pj_before_transition
  before update of status on public.procrastinate_jobs
  for each row
  when (new.pj_lease = old.pj_lease and new.pj_finished_at is not distinct from old.pj_finished_at and new.status <> 'todo')
  execute function procjobs.stamp_transition();
comment on trigger pj_before_transition on public.procrastinate_jobs is
  'Claims and ends by upstream''s own functions, which know nothing of our columns; ours set them and do not come here.';

drop trigger if exists pj_check_options on public.procrastinate_jobs;
create trigger pj_check_options
  before insert on public.procrastinate_jobs
  for each row
  when (
    current_setting('procjobs.args_checked', true) is distinct from 'on' and (
      new.queue_name = '' or num_nonnulls(
        new.scheduled_at, new.lock, new.queueing_lock, new.pj_unique_key, new.pj_max_attempts, new.pj_tags, new.pj_tenant,
        new.pj_timeout, new.pj_batch) > 0
    )
  )
  execute function procjobs.check_options();
comment on trigger pj_check_options on public.procrastinate_jobs is
  'Options of jobs inserted by hand, where there are any, are checked like those of procjobs.defer, which has checked its own.';

drop trigger if exists pj_check_edited on public.procrastinate_jobs;
create trigger pj_check_edited
  before update of args, task_name on public.procrastinate_jobs
  for each row
  when (
    new.status in ('todo', 'failed') and (new.args <> old.args or new.task_name <> old.task_name)
    and current_setting('procjobs.args_checked', true) is distinct from 'on'
  )
  execute function procjobs.check_edited();
comment on trigger pj_check_edited on public.procrastinate_jobs is
  'Arguments changed by hand are checked like those of procjobs.edit_job, which has checked its own.';

drop trigger if exists pj_check_inserted on public.procrastinate_jobs;
create trigger pj_check_inserted
  after insert on public.procrastinate_jobs
  referencing new table as inserted
  for each statement
  when (current_setting('procjobs.args_checked', true) is distinct from 'on')
  execute function procjobs.check_inserted();
comment on trigger pj_check_inserted on public.procrastinate_jobs is
  'Arguments of jobs inserted by hand, by COPY or by upstream''s functions are checked like those of procjobs.defer, which has checked its own.';

drop trigger if exists pj_after_insert on public.procrastinate_jobs;
create trigger pj_after_insert
  after insert on public.procrastinate_jobs
  referencing new table as inserted
  for each statement
  execute function procjobs.announce_jobs();
comment on trigger pj_after_insert on public.procrastinate_jobs is
  'One NOTIFY a queue and statement.';

drop trigger if exists pj_after_abort_request on public.procrastinate_jobs;
create trigger pj_after_abort_request
  after update of abort_requested on public.procrastinate_jobs
  for each row
  when (new.abort_requested and not old.abort_requested and new.status = 'doing')
  execute function procjobs.announce_abort();
comment on trigger pj_after_abort_request on public.procrastinate_jobs is
  'Hints to the worker that somebody asked to stop the job it runs.';

drop trigger if exists pj_after_release on public.procrastinate_jobs;
create trigger pj_after_release
  after update of status on public.procrastinate_jobs
  for each row
  when (old.status = 'doing' and new.status <> 'doing' and old.pj_limits is not null)
  execute function procjobs.release_job();
comment on trigger pj_after_release on public.procrastinate_jobs is
  'A limited job that stops running lets the next one go; one that is deleted does so in pj_after_delete.';

drop trigger if exists pj_after_delete on public.procrastinate_jobs;
create trigger pj_after_delete
  after delete on public.procrastinate_jobs
  referencing old table as deleted
  for each statement
  execute function procjobs.forget_jobs();
comment on trigger pj_after_delete on public.procrastinate_jobs is
  'Once a statement what upstream''s foreign keys and trigger did once a row.';

-- Batches (functions/batches.sql). Jobs without one are passed over in WHEN or in one scan of the deleted rows.

drop trigger if exists pj_after_delete_batch on public.procrastinate_jobs;
create trigger pj_after_delete_batch
  after delete on public.procrastinate_jobs
  referencing old table as deleted
  for each statement
  execute function procjobs.count_left();
comment on trigger pj_after_delete_batch on public.procrastinate_jobs is
  'Counts jobs of batches that left, once a statement.';

drop trigger if exists pj_after_end_batch on public.procrastinate_jobs;
create trigger pj_after_end_batch
  after update of status on public.procrastinate_jobs
  for each row
  when (new.pj_batch is not null and (old.status in ('todo', 'doing')) <> (new.status in ('todo', 'doing')))
  execute function procjobs.count_ended();
comment on trigger pj_after_end_batch on public.procrastinate_jobs is
  'Counts jobs of batches that end and stay, or wait again.';

drop trigger if exists pj_after_archive on procjobs.job_history;
create trigger pj_after_archive
  after insert on procjobs.job_history
  for each row
  when (new.batch is not null and new.worker_id is not null and new.status in ('cancelled', 'aborted'))
  execute function procjobs.count_archived();
comment on trigger pj_after_archive on procjobs.job_history is
  'Runs of batches that were stopped or discarded.';

drop trigger if exists pj_judge_batches on procjobs.batch_ends;
create constraint trigger pj_judge_batches
  after insert on procjobs.batch_ends
  deferrable initially deferred
  for each row
  execute function procjobs.judge_batches();
comment on trigger pj_judge_batches on procjobs.batch_ends is
  'At the commit of who ended jobs of a batch: is the batch over?';

-- The log of settings (functions/setting_log.sql): two triggers for each kind, since only one of them can ask about the new row.

do $$
declare
  v_kind record;
  v_trigger record;
begin
  for v_trigger in
    select t.tgname, t.tgrelid::regclass as relation
    from pg_trigger t
    where t.tgfoid = 'procjobs.note_setting_change()'::regprocedure
      and not t.tgisinternal
  loop
    execute format('drop trigger %I on %s', v_trigger.tgname, v_trigger.relation);
  end loop;

  for v_kind in
    select k.*, (
      select string_agg(quote_ident(a.attname), ', ' order by a.attname)
      from pg_attribute a
      where a.attrelid = format('procjobs.%I', k.relation)::regclass
        and a.attnum > 0
        and not a.attisdropped
        and a.attname <> all (k.kept)
    ) as columns
    from procjobs.setting_kinds() k
  loop
    for v_trigger in values
      ('pj_note_new' || v_kind.part, 'insert or update of ' || v_kind.columns, 'when (' || format(v_kind.scope, 'new') || ')', 'was set'),
      ('pj_note_gone' || v_kind.part, 'delete', 'when (' || format(v_kind.scope, 'old') || ')', 'is dropped')
    loop
      execute format(
        'create trigger %I after %s on procjobs.%I for each row %s execute function procjobs.note_setting_change(%L, %L, %L)',
        v_trigger.column1, v_trigger.column2, v_kind.relation, v_trigger.column3, v_kind.kind, v_kind.key, v_kind.kept);
      execute format(
        'comment on trigger %I on procjobs.%I is %L', v_trigger.column1, v_kind.relation,
        format('Writes to the log of settings what %s: %s.', v_trigger.column4, v_kind.kind));
    end loop;
  end loop;
end
$$;

drop trigger if exists pj_only_added on procjobs.setting_changes;
create trigger pj_only_added
  before update or delete on procjobs.setting_changes
  for each row
  execute function procjobs.keep_setting_changes();
comment on trigger pj_only_added on procjobs.setting_changes is
  'The log of settings is not changed; what is older than a year may go.';

drop trigger if exists pj_not_emptied on procjobs.setting_changes;
create trigger pj_not_emptied
  before truncate on procjobs.setting_changes
  for each statement
  execute function procjobs.keep_setting_changes();
comment on trigger pj_not_emptied on procjobs.setting_changes is
  'The log of settings is not emptied.';
