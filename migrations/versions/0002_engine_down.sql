-- Back to Procrastinate's own tables, with every job. Its indexes and triggers come back right after, from its package.

-- Nothing may be lost: what ended goes back as finished rows, with the values that upstream's columns can hold.
insert into public.procrastinate_jobs (
  id, queue_name, task_name, priority, lock, queueing_lock, args, status, scheduled_at, attempts, abort_requested, worker_id
)
select
  id, queue_name, task_name, priority, lock, queueing_lock, args, status, scheduled_at, attempts, false, null
from procjobs.job_history
on conflict (id) do nothing;

-- The references that upstream's foreign keys will check.
update public.procrastinate_jobs j
set worker_id = null
where worker_id is not null
  and not exists (select from public.procrastinate_workers w where w.id = j.worker_id);

update public.procrastinate_periodic_defers d
set job_id = null
where job_id is not null
  and not exists (select from public.procrastinate_jobs j where j.id = d.job_id);

delete from public.procrastinate_events e
where not exists (select from public.procrastinate_jobs j where j.id = e.job_id);

drop table
  procjobs.upkeep_state,
  procjobs.queue_settings,
  procjobs.tasks,
  procjobs.worker_state,
  procjobs.job_events,
  procjobs.job_attempts,
  procjobs.job_history;

do $$
declare
  v_index regclass;
begin
  for v_index in
    select indexrelid
    from pg_index
    join pg_class on pg_class.oid = indexrelid
    where indrelid = 'public.procrastinate_jobs'::regclass
      and relname like 'pj\_%'
  loop
    execute format('drop index %s', v_index);
  end loop;
end
$$;

alter table public.procrastinate_jobs
  drop column pj_waits_for,
  drop column pj_created_at,
  drop column pj_started_at,
  drop column pj_finished_at,
  drop column pj_lease,
  drop column pj_crashes,
  drop column pj_max_attempts,
  drop column pj_unique_key,
  drop column pj_tags,
  drop column pj_cancel,
  add constraint procrastinate_jobs_worker_id_fkey
    foreign key (worker_id) references public.procrastinate_workers (id) on delete set null,
  reset (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor);

alter table public.procrastinate_events
  add constraint procrastinate_events_job_id_fkey
    foreign key (job_id) references public.procrastinate_jobs (id) on delete cascade;

alter table public.procrastinate_periodic_defers
  add constraint procrastinate_periodic_defers_job_id_fkey
    foreign key (job_id) references public.procrastinate_jobs (id);
