-- Batches: how far each is. Counts of waiting and running jobs are counted when one looks.

create view procjobs.batches as
select
  b.id,
  b.name,
  case when b.finished_at is not null then 'finished' when b.sealed_at is not null then 'sealed' else 'open' end as state,
  n.waiting + n.running + n.succeeded + n.failed + n.cancelled as total,
  n.waiting,
  n.running,
  n.succeeded,
  n.failed,
  n.cancelled,
  round(
    coalesce(
      (n.succeeded + n.failed + n.cancelled)::numeric
        / nullif(n.waiting + n.running + n.succeeded + n.failed + n.cancelled, 0),
      case when b.finished_at is null then 0 else 1 end),
    4) as progress,
  b.created_at,
  b.created_by,
  b.sealed_at,
  b.finished_at,
  b.callback_ids,
  b.problem
from procjobs.job_batches b
cross join lateral (
  select
    (select count(*) from public.procrastinate_jobs j where j.pj_batch = b.id and j.status = 'todo') as waiting,
    (select count(*) from public.procrastinate_jobs j where j.pj_batch = b.id and j.status = 'doing') as running,
    b.succeeded + coalesce(e.succeeded, 0) as succeeded,
    b.failed + coalesce(e.failed, 0) as failed,
    b.cancelled + coalesce(e.cancelled, 0) as cancelled
  from (
    select sum(x.succeeded)::bigint as succeeded, sum(x.failed)::bigint as failed, sum(x.cancelled)::bigint as cancelled
    from procjobs.batch_ends x
    where x.batch = b.id
  ) e
) n;
comment on view procjobs.batches is
  'Batches of jobs and how far they are: select name, progress, failed from procjobs.batches where state <> ''finished''.';
comment on column procjobs.batches.id is 'What create_batch returned.';
comment on column procjobs.batches.name is 'As it was opened.';
comment on column procjobs.batches.state is 'open (jobs may join), sealed (it waits for its jobs), finished (all had ended; callbacks are enqueued).';
comment on column procjobs.batches.total is 'Its jobs. One that is retried after it left for the history runs by itself.';
comment on column procjobs.batches.waiting is 'Jobs that wait, for whatever reason.';
comment on column procjobs.batches.running is 'Jobs that run.';
comment on column procjobs.batches.succeeded is 'Jobs that succeeded.';
comment on column procjobs.batches.failed is 'Dead letters.';
comment on column procjobs.batches.cancelled is 'Jobs that were cancelled, aborted, discarded or deleted.';
comment on column procjobs.batches.progress is 'Part that has ended, 0 to 1.';
comment on column procjobs.batches.created_at is 'When it was opened.';
comment on column procjobs.batches.created_by is 'Database user that opened it.';
comment on column procjobs.batches.sealed_at is 'When it had all its jobs.';
comment on column procjobs.batches.finished_at is 'When the last of them ended. A dead letter that is retried later does not open it again.';
comment on column procjobs.batches.callback_ids is 'Jobs that were enqueued then: on_finish, then on_success or on_discard.';
comment on column procjobs.batches.problem is 'Why they could not be enqueued.';
